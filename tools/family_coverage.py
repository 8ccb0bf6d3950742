"""Cut every model of a library into blocks and compare each with the library's own forward: `family_coverage.py timm`.

Each retrain index from 1 on must train the library's parameters of the last blocks, and no others.

One JSON line per architecture goes to `--out`; names that have a line are skipped, so a run can be continued, and
`--limit-s` ends it between two names. Each `--chunk` names share a process; a name at which a process dies is noted as
that. Weights are random and share buffers, so that no model takes more memory than its activations. The summary is
printed last, from all lines of the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

IMAGE_SIZES = (64, 96, 128, 192)  # the smallest that a model takes is used, else what it was designed for
MADE_SIZES = (64, 56, 112)  # for models that are made for one size: multiples of patches of 8 to 32, of 14, of windows
GOAL = 0.95
TOLERANCE = 1e-6


def main() -> int:
    """Run what is left and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=("torchvision", "timm", "hf"))
    parser.add_argument("--out", type=Path, help="file of JSON lines, by default coverage-FAMILY.jsonl")
    parser.add_argument("--match", default="", help="only names that contain this")
    parser.add_argument("--skip", default="$.", help="leave out names in which this regular expression is found")
    parser.add_argument("--every", type=int, default=1, help="only each so many-th name")
    parser.add_argument("--chunk", type=int, default=25)
    parser.add_argument("--limit-s", type=float, default=540)
    parser.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out = arguments.out or Path(f"coverage-{arguments.family}.jsonl")
    if arguments.worker is not None:
        return work(arguments.worker, out, arguments.limit_s)
    started_s = time.monotonic()
    names = [
        name for name in names_of(arguments.family) if arguments.match in name and not re.search(arguments.skip, name)
    ][:: arguments.every]
    while left := [name for name in names if name not in read(out)]:
        if time.monotonic() - started_s > arguments.limit_s:
            sys.stderr.write(f"{len(left)} names are left; run the same command again\n")
            break
        run_chunk(arguments.family, left[: arguments.chunk], out, started_s + arguments.limit_s)
    summarise(list(read(out).values()))
    return 0


def names_of(family: str) -> list[str]:
    """Return the architectures to try: of transformers those of the tests, whose configurations are tiny."""
    if family == "hf":
        from tests.support.hf_architectures import ARCHITECTURES

        return list(ARCHITECTURES)
    from raysnap.models.families.family import known_names

    return known_names(family)


def read(out: Path) -> dict[str, dict[str, object]]:
    """Return what was found, by name."""
    lines = out.read_text().splitlines() if out.exists() else []
    return {row["architecture"]: row for row in map(json.loads, lines)}


def run_chunk(family: str, names: list[str], out: Path, ends_s: float) -> None:
    """Run names in a process of their own until the time is over; note the one at which it dies."""
    command = [sys.executable, __file__, family, "--out", str(out), "--limit-s", str(ends_s), "--worker", *names]
    process = subprocess.run(command, check=False)
    if process.returncode:
        tried = next((name for name in names if name not in read(out)), None)
        if tried:
            write(out, {"architecture": tried, "error": f"the process ended with {process.returncode}"})


def write(out: Path, row: dict[str, object]) -> None:
    """Append a row."""
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")


def work(names: list[str], out: Path, ends_s: float) -> int:
    """Compare these models, one after the other, until the clock says so."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in names:
        if (started_s := time.monotonic()) > ends_s:
            break
        row = {"architecture": name, **compare_one(name)}
        write(out, row | {"seconds": round(time.monotonic() - started_s, 2)})
        sys.stderr.write(json.dumps(row)[:300] + "\n")
    return 0


def compare_one(name: str) -> dict[str, object]:
    """Return what was found of one architecture."""
    from raysnap.errors import ArchitectureError
    from raysnap.models import blocks
    from raysnap.models.families.family import skeleton
    from tests.support.compositions import compare

    name = small_variant(name)
    try:
        names = blocks.block_names(name)
    except ArchitectureError as error:
        return {"refused": str(error)}
    except Exception as error:  # noqa: BLE001 - to be listed
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    try:
        found = compare(name, *IMAGE_SIZES, None)
    except Exception as error:  # noqa: BLE001 - to be listed
        return {"error": f"{type(error).__name__}: {error}"[:500], "num_blocks": len(names)}
    return {
        "num_blocks": len(names),
        "image_size": found.image_size,
        "difference": found.difference,
        "spread": found.spread,
        "faults": list(found.faults),
        "num_parameters": sum(p.numel() for block in skeleton(name) for p in block.parameters()),
    }


def small_variant(name: str) -> str:
    """Return the architecture made for smaller images, where it is made for one size and can be made for less."""
    if not name.startswith("timm/"):
        return name
    import timm

    bare = name.removeprefix("timm/")
    if not timm.get_pretrained_cfg(bare).fixed_input_size:
        return name
    for image_size in MADE_SIZES:
        with contextlib.suppress(Exception), torch_on_meta():  # each model rejects sizes in its own way
            model = timm.create_model(bare, img_size=image_size).eval()
            model(model.patch_embed.proj.weight.new_empty(2, 3, image_size, image_size))
            return f'{name}{{"img_size":{image_size}}}'
    return name


def torch_on_meta() -> contextlib.AbstractContextManager[object]:
    """Return what makes tensors without values."""
    import torch

    return torch.device("meta")


def summarise(rows: list[dict[str, object]]) -> None:
    """Print the share that is cut, how exact the compositions are, and all others with their reasons."""
    cut = [row for row in rows if "difference" in row and not row["faults"]]
    equal = [row for row in cut if row["difference"] == 0]
    near = [row for row in cut if 0 < float(str(row["difference"])) <= TOLERANCE]
    good = len(equal) + len(near)
    lines = [
        f"{len(rows)} architectures; {good} ({good / max(1, len(rows)):.1%}) cut into three blocks or more:",
        f"  {len(equal)} equal bit for bit, {len(near)} within {TOLERANCE}",
    ]
    for row in rows:
        if row not in equal and row not in near:
            lines.append(f"  {row['architecture']}: {row.get('refused') or row.get('error') or row}")
        elif row in near or float(str(row["spread"])) < 1e-5:
            lines.append(f"  ({row['architecture']}: difference {row['difference']:.1e}, spread {row['spread']:.1e})")
    counts = Counter(int(str(row["num_blocks"])) for row in cut)
    lines.append("blocks: " + ", ".join(f"{num} x{count}" for num, count in sorted(counts.items())))
    lines.append(json.dumps({"num": len(rows), "num_cut": good, "share": good / max(1, len(rows)), "goal": GOAL}))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
