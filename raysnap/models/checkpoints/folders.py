"""Folders of weights: which files in them are one model's, and what other files there say of it.

transformers and accelerate write `model.safetensors` or shards with an index, and older ones `pytorch_model.bin`; timm
and transformers describe the model in `config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysnap.canonical_json import parse_json
from raysnap.errors import SYSTEM_LIMITS, WeightsError

SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES, ".ckpt", ".tar", ".th", ".pkl")
"""Beside torch's own, those of Lightning, of `.pth.tar` and of fastai."""

_EXPORTED_SUFFIX = ".pt2"
SAVE_WEIGHTS = "save the weights of the PyTorch model: torch.save(model.state_dict(), 'weights.pth')"
"""What helps where a file has a program or another framework's model."""
INDEX_SUFFIX = ".index.json"

MAX_JSON_BYTES = 64 * 2**20
MAX_SHARDS = 10_000

# What libraries call the weights in a folder, the newest first.
FOLDER_WEIGHTS = "model.safetensors"
_NAMES = (FOLDER_WEIGHTS, "pytorch_model.bin", "diffusion_pytorch_model.safetensors")
CONFIG_FILE = "config.json"
"""Where timm and transformers describe the model of a folder."""

DISTRIBUTED_INDEX = ".metadata"
"""What torch.distributed.checkpoint calls the index of its folders."""


@dataclass(frozen=True)
class WeightFiles:
    """The files of one model.

    Attributes:
        path: what people call it: the file, or the folder that the files are in.
        files: of weights, all of one kind, which together have every tensor once; or the folder, where it is read as
            one.
        listed: the file of each tensor, where an index lists them.
    """

    path: Path
    files: tuple[Path, ...]
    listed: Mapping[str, str] | None = None


def find_files(path: Path) -> WeightFiles:
    """Return the files of the model that a file or a folder holds.

    Raises:
        WeightsError: there is none, or more than one.
    """
    if path.is_file():
        if path.name.endswith(INDEX_SUFFIX):
            return _sharded(path, path)
        if path.suffix not in SUFFIXES:
            step = SAVE_WEIGHTS
            if path.suffix == _EXPORTED_SUFFIX:
                step = f"torch.save(torch.export.load({path.name!r}).state_dict, 'weights.pth') writes one"
            raise WeightsError(
                f"{path}: expected a file ending in {', '.join(SUFFIXES)}, found {path.suffix!r}; {step}"
            )
        return WeightFiles(path, (path,))
    if not path.is_dir():
        raise WeightsError(f"{path}: expected a file or folder of weights, found nothing there")
    if (path / DISTRIBUTED_INDEX).is_file():
        return WeightFiles(path, (path,))
    for name in _NAMES:
        if (path / name).is_file():
            return WeightFiles(path, (path / name,))
        if (path / f"{name}{INDEX_SUFFIX}").is_file():
            return _sharded(path, path / f"{name}{INDEX_SUFFIX}")
    found = sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES and entry.is_file())
    if len(found) == 1:
        return WeightFiles(path, (found[0],))
    shown = ", ".join(entry.name for entry in found[:3]) + (", …" if len(found) > 3 else "")
    raise WeightsError(
        f"{path}: expected the weights of one model ({', '.join(_NAMES[:2])}), found "
        + (f"{len(found)} files ({shown}); name the files" if found else "no file of weights")
    )


def _sharded(path: Path, index_path: Path) -> WeightFiles:
    """Return the shards that an index lists."""
    index = read_json(index_path)
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise WeightsError(f"{index_path}: expected a weight_map of tensors and their files, found none")
    names = sorted(set(listed.values()))
    odd = next((name for name in names if Path(name).name != name or Path(name).suffix not in SUFFIXES), None)
    if odd is not None or len(names) > MAX_SHARDS or len({Path(name).suffix for name in names}) > 1:
        what = "too many" if odd is None else repr(odd[:80])
        raise WeightsError(f"{index_path}: expected names of files of one kind beside it, found {what}")
    files = tuple(index_path.parent / name for name in names)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(f"{index_path}: expected {len(files)} shards beside it, found {missing[0]} missing")
    return WeightFiles(path, files, listed)


def read_json(path: Path) -> Any:
    """Return the JSON in a file.

    Raises:
        WeightsError: it can't be read, is too large or no strict JSON.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
        if len(raw) > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
        return parse_json(raw)
    except OSError as error:
        reason = SYSTEM_LIMITS.get(error.errno or 0, error.strerror or str(error))
        raise WeightsError(f"{path}: can't be read: {reason}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise WeightsError(f"{path}: expected JSON, found: {reason[:200]}") from None


def description(path: Path, name: str) -> dict[str, Any] | None:
    """Return the JSON object in the file of this name in the folder of a model; None where there is none.

    A file of weights with a name that libraries give it in such a folder stands for the folder.

    Raises:
        WeightsError: the file is there and holds something else.
    """
    folder = path.parent if path.name in _NAMES or path.name.endswith(INDEX_SUFFIX) else path
    file = folder / name
    if not file.is_file():
        return None
    document = read_json(file)
    if not isinstance(document, dict):
        raise WeightsError(f"{file}: expected a JSON object, found {type(document).__name__}")
    return document


def class_names(path: Path) -> tuple[str, ...]:
    """Return the names of the classes that a folder's `config.json` has, in label order; none where it has none.

    Raises:
        WeightsError: the file can't be read.
    """
    config = description(path, CONFIG_FILE) or {}
    names, known = config.get("label_names"), config.get("id2label")
    if isinstance(known, dict) and set(known) == set(map(str, range(len(known)))):
        names = [known[str(index)] for index in range(len(known))]
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        return ()
    is_usual = names == [f"LABEL_{index}" for index in range(len(names))]
    return () if is_usual else tuple(names)
