"""Check what a file that `torch.save` wrote would make `torch.load` do, before it is loaded.

`weights_only=True` prevents foreign code from running. It does not prevent a file of some hundred bytes from taking
all memory or all time: a compressed archive, an allocation, a value that contains itself twice, fifty levels deep.
Such files are rejected here.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any, TypeAlias

from raysnap.errors import SYSTEM_LIMITS, WeightsError

MAX_DEPTH = 100
MAX_VALUES = 10_000_000
MAX_OPCODES = 500_000
NUM_LEGACY_PICKLES = 5

_ZIP_MAGIC = b"PK\3\4"
# What a dict of tensors and plain values consists of; nothing here allocates more than the file contains.
_HARMLESS = re.compile(
    r"collections (OrderedDict|Counter)|torch\._utils _rebuild_(tensor(_v2|_v3)?|parameter(_with_state)?)"
    r"|torch(\.storage)? [A-Za-z0-9]+Storage|torch (Size|device|bool|(b?float|u?int|complex)[0-9a-z_]+)"
    r"|torch\.nn\.parameter Parameter|_codecs encode|(builtins|__builtin__) (set|complex)"
)
_ATOMS = {"int", "long", "float", "str", "bytes", "bytes_or_str", "None", "bool", "int_or_bool"}
_FROM_MARK = ("TUPLE", "APPENDS", "SETITEMS")
_TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2, "BINPERSID": 1}
_TAKES_INTO = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}

Node: TypeAlias = list[Any]
"""A value that contains others, as the list of these."""

_MARK = object()


def check_checkpoint(path: Path) -> None:
    """Check a file for `torch.load` without unpickling anything.

    Raises:
        WeightsError: it is not a checkpoint of tensors, or loading would take more memory than the file has bytes.
    """
    try:
        with path.open("rb") as file:
            if is_archive(file):
                members = check_archive(file, path.stat().st_size)
                with zipfile.ZipFile(file) as archive:
                    for member in members:
                        with archive.open(member) as pickle_file:
                            _check_pickle(pickle_file)
            else:
                _check_legacy(file)
    except (ValueError, LookupError, OSError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        if isinstance(error, OSError) and error.errno in SYSTEM_LIMITS:
            raise WeightsError(f"{path}: {SYSTEM_LIMITS[error.errno]}") from None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, KeyError | IndexError):  # what they say is a byte or a place, of no pickle
            reason = "something else, or a damaged file"
        raise WeightsError(
            f"{path}: expected a checkpoint of tensors only (torch.save of a state_dict()), found: {reason}"
        ) from None


def is_archive(file: IO[bytes]) -> bool:
    """Return whether the file is what `torch.save` writes since 2020; it is left at its beginning."""
    magic = file.read(len(_ZIP_MAGIC))
    file.seek(0)
    return magic == _ZIP_MAGIC


def check_archive(file: IO[bytes], file_bytes: int) -> list[zipfile.ZipInfo]:
    """Check that an archive's members take no more than the file has bytes; return those that are pickles.

    Raises:
        ValueError: `torch.save` writes no such archive.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members) or (
            sum(member.file_size for member in members) > file_bytes
        ):
            raise ValueError("an archive whose members are compressed or overlap; torch.save writes none")
        # torch ignores the case of members' names.
        if len({member.orig_filename.lower() for member in members}) != len(members):
            raise ValueError("an archive in which two members have the same name")
        return [member for member in members if ".pkl" in member.orig_filename.lower()]


def _check_legacy(file: IO[bytes]) -> None:
    for _ in range(NUM_LEGACY_PICKLES - 2):
        _check_pickle(file)
    _, needed = _check_pickle(file)
    keys, _ = _check_pickle(file)
    # torch leaves the memory of a storage that is not listed uninitialised.
    if not isinstance(keys, list) or not needed <= {key for key in keys if isinstance(key, str)}:
        raise ValueError("a tensor whose values are not in the file")


def _check_pickle(file: IO[bytes]) -> tuple[Any, set[str]]:
    """Follow a pickle's opcodes without executing them; return its value in outline and the keys of its storages."""
    stack: list[Any] = []
    memo: dict[object, Any] = {}
    made: list[Node] = []
    storage_keys: set[str] = set()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if number > MAX_OPCODES:
            raise ValueError(f"a pickle of more than {MAX_OPCODES} steps")
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name not in ("PROTO", "FRAME", "STOP"):
            if name == "GLOBAL" and not _HARMLESS.fullmatch(str(argument)):
                raise ValueError(f"{str(argument).replace(' ', '.', 1)[:80]!r}, which is not part of a tensor")
            if name == "BINPERSID" and isinstance(stack[-1], list) and len(stack[-1]) > 2:
                storage_keys.update(key for key in stack[-1][2:3] if isinstance(key, str))
            _take_and_make(opcode, argument, stack, made)
    _check_expansion(made)
    return stack[-1], storage_keys


def _take_and_make(opcode: pickletools.OpcodeInfo, argument: Any, stack: list[Any], made: list[Node]) -> None:
    name = opcode.name
    if name in _FROM_MARK:
        mark = next((index for index in range(len(stack) - 1, -1, -1) if stack[index] is _MARK), None)
        if mark is None:
            raise ValueError(f"a pickle without a mark at {name}")
        taken = stack[mark + 1 :]
        del stack[mark:]
    else:
        count = _TAKES.get(name, 0) + _TAKES_INTO.get(name, 0)
        taken = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        if len(taken) < count or _MARK in taken:
            raise ValueError(f"a pickle that takes more values than it made at {name}")
    if name in _TAKES_INTO or name in ("APPENDS", "SETITEMS"):
        if not isinstance(stack[-1], list):
            raise ValueError(f"a pickle that adds to a plain value at {name}")
        stack[-1].extend(taken)
    elif name in _TAKES or name in ("TUPLE", "GLOBAL") or name.startswith("EMPTY_"):
        stack.append(taken)
        made.append(taken)
    elif len(opcode.stack_after) == 1 and not opcode.stack_before and opcode.stack_after[0].name in _ATOMS:
        stack.append(argument)
    else:
        raise ValueError(f"a pickle with {name}, which weights do not need")


def _check_expansion(made: list[Node]) -> None:
    """Bound depth and number of the values as hashing and printing meet them: written out wherever they occur."""
    sizes: dict[int, tuple[int, int]] = {}
    on_path: set[int] = set()
    for root in made:
        pending = [(root, False)]
        while pending:
            node, is_done = pending.pop()
            if is_done:
                on_path.discard(id(node))
                children = [sizes.get(id(child), (1, 1)) if isinstance(child, list) else (1, 1) for child in node]
                depth = 1 + max((depth for depth, _ in children), default=0)
                count = 1 + sum(count for _, count in children)
                if depth > MAX_DEPTH or count > MAX_VALUES:
                    raise ValueError("values nested too deeply, or one contained in others too often")
                sizes[id(node)] = depth, count
            elif id(node) in on_path:
                raise ValueError("a value that contains itself")
            elif id(node) not in sizes:
                on_path.add(id(node))
                pending.append((node, True))
                pending.extend((child, False) for child in node if isinstance(child, list) and id(child) not in sizes)
