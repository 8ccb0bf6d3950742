"""Import what trainers save, made by the trainers themselves: `trainer_checkpoints.py [WORD ...]`.

    python -m venv trainers && trainers/bin/python -m pip install -e '.[timm,hf]' accelerate==1.15.0 peft==0.21.2 \
        lightning==2.6.6 fastai==2.8.12 skorch==1.4.0 pytorch-ignite==0.5.5 open_clip_torch==3.3.0 mmengine==0.10.7 \
        mmcv-lite mmpretrain==1.2.0 keras onnx onnxscript ultralytics catalyst==22.4 pytorch-accelerated poutyne \
        torchtnt torchbearer monai lightly efficientnet-pytorch
    trainers/bin/python tools/trainer_checkpoints.py

Each row is made by the package that it is named after, where that can be imported, and added to a new store. The
tensors have to be those that the trainer's own loading gives, or the refusal has to name the step that helps. Most
files hold an object that writes a file where it is unpickled: after the import there must be none. Prints the table as
Markdown, and with `--json` one JSON document; rows can be chosen by words in them. Exit code 1 where a row fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("KERAS_BACKEND", "torch")

from tools.trainers.row import CANARY_VARIABLE, ROWS, Row, Saved  # noqa: E402


def main() -> int:
    """Make and import the rows and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="only rows in which all of these occur")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--traceback", action="store_true", help="print the tracebacks of rows that fail")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    from tools.trainers import library_rows, loop_rows, torch_rows  # noqa: F401 - they fill the table

    results = []
    for row in ROWS:
        if all(word.lower() in f"{row.trainer} {row.what}".lower() for word in options.words):
            results.append(run(row, has_traceback=options.traceback))
            sys.stderr.write(f"{results[-1]['outcome']:8} {row.trainer}: {row.what} ({results[-1]['detail']})\n")
    sys.stdout.write(json.dumps(results, indent=2) + "\n" if options.json else "\n".join(table(results)) + "\n")
    return 1 if any(result["outcome"] == "FAILED" for result in results) else 0


def run(row: Row, *, has_traceback: bool = False) -> dict[str, Any]:
    """Make one row's checkpoint and import it."""
    found = {"trainer": row.trainer, "what": row.what, "version": version_of(row.trainer)}
    missing = [package for package in row.packages if find_spec(package) is None]
    if missing:
        return found | {"outcome": "skipped", "detail": f"no {' and '.join(missing)}"}
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory, "made")
            folder.mkdir()
            canary = Path(directory, "canary")
            os.environ[CANARY_VARIABLE] = str(canary)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                saved = row.make(folder)
            canary.unlink(missing_ok=True)
            outcome, detail = imported(saved, Path(directory, "store"))
            if canary.exists():
                outcome, detail = "FAILED", "something in the file was run"
    except Exception as error:  # noqa: BLE001 - a row that can't be made is a failed row
        if has_traceback:
            traceback.print_exc()
        outcome, detail = "FAILED", f"{type(error).__name__}: {str(error)[:300]}"
    return found | {"outcome": outcome, "detail": detail, "seconds": round(time.perf_counter() - start, 1)}


def imported(saved: Saved, store_dir: Path) -> tuple[str, str]:
    """Add a checkpoint to a new store; return how that compares with what is expected of it, and in which words."""
    import torch

    from raysnap.errors import RaysnapError
    from raysnap.store.exchange.weights_in import add_path
    from raysnap.store.store import Store

    try:
        added = add_path(store_dir, saved.path, name="it", **saved.options)
    except RaysnapError as error:
        text = str(error).replace(str(saved.path), saved.path.name)
        is_right = saved.refusal is not None and saved.refusal in text
        return "refused" if is_right else "FAILED", text
    if saved.expected is None:
        return "FAILED", "expected a refusal"
    architecture = added.written.manifest.architecture
    if saved.architecture not in (None, architecture):
        return "FAILED", f"expected {saved.architecture}, found {architecture}"
    tensors = Store.open(store_dir).load_model("it").state_dict()
    odd = [
        name
        for name, tensor in saved.expected.items()
        if name not in tensors or tensors[name].dtype != tensor.dtype or not torch.equal(tensors[name], tensor)
    ]
    left = [name for name in tensors if name not in saved.expected] if not added.weights.headless else []
    if odd or left:
        return "FAILED", f"{len(odd)} tensors differ and {len(left)} are new: {', '.join([*odd, *left][:3])}"
    return "equal", "; ".join(remark for remark in added.remarks if "assumed to take" not in remark)


def version_of(package: str) -> str:
    """Return a package's version."""
    names = packages_distributions().get(package, [package])
    with contextlib.suppress(PackageNotFoundError):
        return version(names[0])
    return ""


def table(results: list[dict[str, Any]]) -> list[str]:
    """Return the results as lines of Markdown."""
    counts = {outcome: sum(result["outcome"] == outcome for result in results) for outcome in ("equal", "refused")}
    lines = ["| trainer | version | what it saves | outcome |", "| --- | --- | --- | --- |"]
    lines += [f"| {one['trainer']} | {one['version']} | {one['what']} | {one['outcome']} |" for one in results]
    failed = len(results) - sum(counts.values())
    return [*lines, "", f"{counts['equal']} equal, {counts['refused']} refused, {failed} failed or skipped"]


if __name__ == "__main__":
    sys.exit(main())
