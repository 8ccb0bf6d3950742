"""What a file of `torch.save` would make `torch.load` do, looked at before it does anything.

`weights_only=True` keeps foreign code from running. It does not keep a file of some hundred bytes from taking all
memory or all time: a deflated archive, an allocation, a value that holds itself twice, fifty times over. They end here.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from raysnap.errors import WeightsError

MAX_DEPTH = 100
MAX_VALUES = 10_000_000
MAX_OPCODES = 500_000
NUM_LEGACY_PICKLES = 5

_ZIP_MAGIC = b"PK\3\4"
# What a dict of tensors and plain values is made of; nothing here allocates more than the file brings.
_HARMLESS = re.compile(
    r"collections (OrderedDict|Counter)|torch\._utils _rebuild_(tensor(_v2|_v3)?|parameter(_with_state)?)"
    r"|torch(\.storage)? [A-Za-z0-9]+Storage|torch (Size|device|bool|(b?float|u?int|complex)[0-9a-z_]+)"
    r"|torch\.nn\.parameter Parameter|_codecs encode|(builtins|__builtin__) (set|complex)"
)
_ATOMS = {"int", "long", "float", "str", "bytes", "bytes_or_str", "None", "bool", "int_or_bool"}
_FROM_MARK = ("TUPLE", "APPENDS", "SETITEMS")
_TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2, "BINPERSID": 1}
_TAKES_INTO = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}

Node = list  # a value that holds others, as the list of what it holds
_MARK = object()


def check_checkpoint(path: Path) -> None:
    """Looks through a file for `torch.load` without unpickling anything.

    Raises:
        WeightsError: it is no checkpoint, or would take more than it brings.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC:
                _check_archive(file, path.stat().st_size)
            else:
                file.seek(0)
                _check_legacy(file)
    except (ValueError, LookupError, OSError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(
            f"{path}: expected a checkpoint of tensors only (torch.save of a state_dict()), found: {reason}"
        ) from None


def _check_archive(file: BinaryIO, file_bytes: int) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(one.compress_type != zipfile.ZIP_STORED for one in members) or (
            sum(one.file_size for one in members) > file_bytes
        ):
            raise ValueError("an archive whose members are compressed or overlap; torch.save makes none")
        # torch finds members whatever the case of their names.
        if len({one.orig_filename.lower() for one in members}) != len(members):
            raise ValueError("an archive in which a name stands twice")
        for member in members:
            if ".pkl" in member.orig_filename.lower():
                with archive.open(member) as pickle_file:
                    _check_pickle(pickle_file)


def _check_legacy(file: BinaryIO) -> None:
    for _ in range(NUM_LEGACY_PICKLES - 2):
        _check_pickle(file)
    _, needed = _check_pickle(file)
    keys, _ = _check_pickle(file)
    # torch leaves the memory of a storage that is not listed as it was.
    if not isinstance(keys, Node) or not needed <= {key for key in keys if isinstance(key, str)}:
        raise ValueError("a tensor whose values are not in the file")


def _check_pickle(file: BinaryIO) -> tuple[Any, set[Any]]:
    """Follows a pickle's opcodes without doing what they say: its value in outline, and the keys of its storages."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    made: list[Node] = []
    storage_keys: set[Any] = set()
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
            if name == "GLOBAL" and not _HARMLESS.fullmatch(argument):
                raise ValueError(f"{argument.replace(' ', '.', 1)[:80]!r}, which is no part of a tensor")
            if name == "BINPERSID" and isinstance(stack[-1], Node) and len(stack[-1]) > 2:
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
            raise ValueError(f"a pickle that takes more than it made at {name}")
    if name in _TAKES_INTO or name in ("APPENDS", "SETITEMS"):
        if not isinstance(stack[-1], Node):
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
    """Bounds depth and number of the values if each were written out where it stands, as hashing and printing do."""
    sizes: dict[int, tuple[int, int]] = {}
    on_path: set[int] = set()
    for root in made:
        pending = [(root, False)]
        while pending:
            node, is_done = pending.pop()
            if is_done:
                on_path.discard(id(node))
                children = [sizes.get(id(child), (1, 1)) if isinstance(child, Node) else (1, 1) for child in node]
                depth = 1 + max((depth for depth, _ in children), default=0)
                count = 1 + sum(count for _, count in children)
                if depth > MAX_DEPTH or count > MAX_VALUES:
                    raise ValueError("values nested too deeply, or one in another too often")
                sizes[id(node)] = depth, count
            elif id(node) in on_path:
                raise ValueError("a value that holds itself")
            elif id(node) not in sizes:
                on_path.add(id(node))
                pending.append((node, True))
                pending.extend((child, False) for child in node if isinstance(child, Node) and id(child) not in sizes)
