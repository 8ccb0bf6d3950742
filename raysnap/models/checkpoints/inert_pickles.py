"""Read the tensors of a file that `torch.save` wrote with foreign classes in it, running and importing nothing.

Trainers save what they have: argument namespaces, callbacks, whole models. Here a pickle's opcodes are followed by a
machine of our own. What they would call or construct becomes an inert stand-in, a `Made`, that holds what it was given;
what rebuilds tensors becomes an outline, of which the values are read from the file where they are wanted. A whole
model, an `nn.Module`, gives up its state dict, as it keeps its tensors in `_parameters`, `_buffers` and `_modules`.

Nothing takes more memory than a constant times the file: steps, names and values are counted, storages must be in the
file in full, and no tensor may be larger than its storage.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

import torch
from torch import Tensor

from raysnap.models.foreign_pickles import MAX_DEPTH, MAX_OPCODES, check_archive, is_archive

MAX_SEEN = 1_000_000
MAX_PREFIX_CHARACTERS = 1_000
MAX_COUNT = 2**48  # of values, and of each dimension
LEGACY_STAGES = 3  # the pickles before that of the value: magic number, version, system

_STORAGES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
_REBUILD = {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v3"}
_REBUILD_PARAMETER = {"torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"}
_DICTIONARIES = {"collections OrderedDict", "builtins dict", "__builtin__ dict"}
_MODULE_KEYS = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class Named:
    """A class or function that a pickle names, which is never looked up."""

    name: str


@dataclass(eq=False)
class Made:
    """What a pickle would have made by calling or constructing something."""

    of: Any
    arguments: Any
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    listed: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Storage:
    """The values that tensors are views of: where they are and how many."""

    key: str
    dtype: torch.dtype
    num_values: int


@dataclass(frozen=True, eq=False)
class TensorOutline:
    """A tensor without its values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


Entries: TypeAlias = dict[str, dict[str, TensorOutline]]


class InertFile:
    """The value that a file would have been unpickled to, in outline, and where its storages are.

    Attributes:
        value: dictionaries, lists, tuples and plain values, tensors in outline, and stand-ins.
    """

    def __init__(self, source: Path | bytes):
        """Follow the pickle in a file, or in its bytes.

        Raises:
            ValueError: it is no pickle of torch's, or one that would take too much.
        """
        self._source = source
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._places: dict[str, tuple[int, int]] = {}
        with self._open() as file:
            if is_archive(file):
                check_archive(file, len(source) if isinstance(source, bytes) else source.stat().st_size)
                self.value = self._read_archive(file)
            else:
                self.value = self._read_legacy(file)

    def _open(self) -> IO[bytes]:
        return io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source.open("rb")

    def _read_archive(self, file: IO[bytes]) -> Any:
        with zipfile.ZipFile(file) as archive:
            members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
            if "data.pkl" not in members:
                raise ValueError("an archive without data.pkl")
            if "byteorder" in members and archive.read(members["byteorder"])[:6] != b"little":
                raise ValueError("values of a big-endian machine")
            with archive.open(members["data.pkl"]) as pickle_file:
                value = follow(pickle_file)
        self._members = {name[5:]: member for name, member in members.items() if name.startswith("data/")}
        return value

    def _read_legacy(self, file: IO[bytes]) -> Any:
        for _ in range(LEGACY_STAGES):
            follow(file)
        machine = _Machine()
        value = machine.run(file)
        keys = follow(file)
        if not isinstance(keys, list):
            raise ValueError("no list of storages")
        start = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(start)
        for key in keys:
            storage = machine.storages.get(key) if isinstance(key, str) else None
            if storage is None:
                raise ValueError("a storage that no tensor is of")
            num_values = int.from_bytes(file.read(8), "little")
            num_bytes = num_values * storage.dtype.itemsize
            if file.tell() + num_bytes > end:
                raise ValueError("a storage that is cut off")
            self._places[key] = file.tell(), num_bytes
            file.seek(num_bytes, os.SEEK_CUR)
        return value

    def tensors(self, outlines: Mapping[str, TensorOutline]) -> dict[str, Tensor]:
        """Return tensors with their values; those that share a storage share its memory.

        Raises:
            ValueError: they are not in the file.
        """
        values: dict[str, Tensor] = {}
        found = {}
        for name, outline in outlines.items():
            key = outline.storage.key
            if key not in values:
                values[key] = self._read_storage(outline.storage)
            if values[key].dtype != outline.dtype:
                raise ValueError("a storage of two types")
            found[name] = values[key].as_strided(outline.shape, outline.stride, outline.offset)
        return found

    def _read_storage(self, storage: Storage) -> Tensor:
        num_bytes = storage.num_values * storage.dtype.itemsize
        member, place = self._members.get(storage.key), self._places.get(storage.key)
        if num_bytes != (member.file_size if member else place[1] if place else -1):
            raise ValueError(f"a storage of {storage.num_values} values that the file does not hold")
        if not num_bytes:
            return torch.empty(0, dtype=storage.dtype)
        with self._open() as file:
            if member is not None:
                with zipfile.ZipFile(file) as archive:
                    raw = bytearray(archive.read(member))
            else:
                file.seek(place[0] if place else 0)
                raw = bytearray(file.read(num_bytes))
        if len(raw) != num_bytes:
            raise ValueError("a file that became shorter while it was read")
        if storage.dtype == torch.bool and raw.strip(b"\0\1"):
            raise ValueError("booleans of other bytes than 0 and 1")
        return torch.frombuffer(raw, dtype=storage.dtype)


def follow(file: IO[bytes]) -> Any:
    """Return the value of one pickle, in outline; the file is left at its end.

    Raises:
        ValueError: it is no pickle, or one that would take too much.
    """
    return _Machine().run(file)


def tensors_of(value: Any) -> Entries:
    """Return the state dicts in a file's value by their key, `""` for the value itself; modules give theirs.

    Raises:
        ValueError: there are too many tensors, names are too long, or modules are nested too deeply.
    """
    search = _Search()
    own = search.state_dict(value)
    if own:
        return {"": own}
    entries: Entries = {}
    for key, inner in _parts_of(value):
        if tensors := search.state_dict(inner):
            entries.setdefault(key, tensors)
    return entries


def _parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a file's value holds by name: items of a dictionary, or attributes of an object, such as a learner."""
    for key, inner in items_of(value).items():
        name = _text_of(key.value) if isinstance(key, OddKey) else key
        if isinstance(name, str):
            yield name, inner
    if isinstance(value, Made) and isinstance(value.state, dict):
        yield from ((key, inner) for key, inner in value.state.items() if isinstance(key, str))


def _text_of(value: Any) -> str | None:
    """Return the only text that a stand-in holds, such as that of a key of a class of its own."""
    if not isinstance(value, Made):
        return None
    held = [value.arguments, *(value.state.values() if isinstance(value.state, dict) else [value.state])]
    texts = [one for part in held for one in (part if isinstance(part, tuple) else (part,)) if isinstance(one, str)]
    return texts[0] if len(set(texts)) == 1 else None


def items_of(value: Any) -> Mapping[Any, Any]:
    """Return the items of a dictionary, or of a stand-in for one."""
    if isinstance(value, dict):
        return value
    return value.items if isinstance(value, Made) else {}


class _Search:
    """A search for tensors that counts what it looks at: one value may be held by very many others."""

    def __init__(self) -> None:
        self._num_seen = 0

    def _see(self, prefix: str) -> None:
        self._num_seen += 1
        if self._num_seen > MAX_SEEN or len(prefix) > MAX_PREFIX_CHARACTERS:
            raise ValueError(f"more than {MAX_SEEN} tensors and modules, or names of endless length")

    def state_dict(self, value: Any) -> dict[str, TensorOutline]:
        """Return the tensors of a module, or of a dictionary that holds nothing else; none of anything else."""
        state = _module_state(value)
        if state is not None:
            return dict(self._in_module(state, "", 0))
        tensors = {}
        for name, one in items_of(value).items():
            self._see("")
            if not isinstance(name, str) or not isinstance(one, TensorOutline):
                return {}
            tensors[name] = one
        return tensors

    def _in_module(self, state: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, TensorOutline]]:
        if depth > MAX_DEPTH:
            raise ValueError("modules nested too deeply")
        skipped = state.get("_non_persistent_buffers_set")
        unsaved = skipped if isinstance(skipped, set) else set()
        for key in _MODULE_KEYS[:2]:
            for name, tensor in items_of(state[key]).items():
                self._see(prefix)
                if isinstance(name, str) and isinstance(tensor, TensorOutline) and name not in unsaved:
                    yield prefix + name, tensor
        for name, module in items_of(state["_modules"]).items():
            self._see(prefix)
            inner = _module_state(module)
            if isinstance(name, str) and inner is not None:
                yield from self._in_module(inner, f"{prefix}{name}.", depth + 1)


def _module_state(value: Any) -> Mapping[Any, Any] | None:
    """Return the attributes of a stand-in for a module."""
    state = value.state if isinstance(value, Made) else None
    is_module = isinstance(state, dict) and all(isinstance(state.get(key), dict | Made) for key in _MODULE_KEYS)
    return state if is_module else None


_MARK = object()


class _Machine:
    """A pickle machine that makes plain values, outlines and stand-ins."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[object, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, file: IO[bytes]) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number > MAX_OPCODES:
                raise ValueError(f"a pickle of more than {MAX_OPCODES} steps")
            step = _STEPS.get(opcode.name)
            if step is not None:
                step(self, argument)
            elif opcode.name in _PLAIN:
                self.stack.append(_PLAIN[opcode.name](argument))
            else:
                raise ValueError(f"a pickle with {opcode.name}")
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            raise ValueError("a pickle that does not end with one value")
        return self.stack[0]

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("a pickle that takes more values than it made")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("a pickle that adds to nothing")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                taken = self.stack[index + 1 :]
                del self.stack[index:]
                return taken
        raise ValueError("a pickle without a mark")

    def push_tuple(self, count: int) -> None:
        taken = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(taken)))

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Made):
            target.listed.extend(values)
        elif isinstance(target, set):
            target.update(filter(_is_plain, values))
        else:
            raise ValueError("a pickle that appends to a plain value")

    def set_items(self, flat: list[Any]) -> None:
        target = self.top()
        items = target.items if isinstance(target, Made) else target
        if not isinstance(items, dict) or len(flat) % 2:
            raise ValueError("a pickle that sets items of a plain value")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            items[key if _is_plain(key) else OddKey(key)] = value

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        self.stack.append(self._made(function, arguments))

    def _made(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, Named) else ""
        if not isinstance(arguments, tuple):
            return Made(function, arguments)
        if name in _REBUILD and len(arguments) >= 4:
            return _outline(arguments, name.endswith("_v3"))
        if name in _REBUILD_PARAMETER and arguments and isinstance(arguments[0], TensorOutline):
            return arguments[0]
        if name in _DICTIONARIES and not arguments:
            return {}
        if name in ("builtins set", "__builtin__ set") and len(arguments) == 1 and isinstance(arguments[0], list):
            return set(filter(_is_plain, arguments[0]))
        return Made(function, arguments)

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Made):
            target.state = state

    def refer(self) -> None:
        identity = self.pop()
        storage = _storage(identity)
        if storage is not None:
            self.storages.setdefault(storage.key, storage)
        self.stack.append(storage or Made(Named("persistent id"), identity))


class OddKey:
    """A key that is no plain value, such as a stand-in; equal ones stay apart, as what they hold is not looked at."""

    def __init__(self, value: Any):
        self.value = value


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bytes | Named)


def _storage(identity: Any) -> Storage | None:
    if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
        return None
    kind, key, num_values = identity[1], identity[2], identity[4]
    name = kind.name.rpartition(" ")[2] if isinstance(kind, Named) else ""
    dtype = torch.uint8 if name == "UntypedStorage" else _STORAGES.get(name.removesuffix("Storage"))
    is_whole = len(identity) < 6 or identity[5] is None
    if (
        dtype is None
        or type(key) is not str
        or type(num_values) is not int
        or not is_whole
        or not 0 <= num_values <= MAX_COUNT
    ):
        return None
    return Storage(key, dtype, num_values)


def _outline(arguments: tuple[Any, ...], has_dtype: bool) -> TensorOutline | Made:
    """Return the tensor that these arguments rebuild; a stand-in where they make none that is in its storage."""
    storage, offset, shape, stride = arguments[:4]
    stand_in = Made(Named("tensor"), None)
    if has_dtype or not isinstance(storage, Storage):
        return stand_in
    shape, stride = (one.arguments[0] if is_size(one) else one for one in (shape, stride))
    for counts in (shape, stride):
        if not isinstance(counts, tuple) or not all(type(one) is int and 0 <= one <= MAX_COUNT for one in counts):
            return stand_in
    if type(offset) is not int or not 0 <= offset <= MAX_COUNT or len(shape) != len(stride) or len(shape) > 32:
        return stand_in
    num_values = math.prod(shape)
    last = offset + sum((count - 1) * step for count, step in zip(shape, stride, strict=True)) if num_values else -1
    if last >= storage.num_values or num_values > storage.num_values:
        raise ValueError("a tensor larger than its storage")
    return TensorOutline(storage, offset, shape, stride, storage.dtype)


def is_size(value: Any) -> bool:
    """Return whether this stands for a `torch.Size`, of which the only argument is a tuple or what should be one."""
    return (
        isinstance(value, Made)
        and value.of == Named("torch Size")
        and isinstance(value.arguments, tuple)
        and len(value.arguments) == 1
    )


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda argument: value


def _itself(argument: Any) -> Any:
    return argument


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_DICT": lambda argument: {},
    "EMPTY_LIST": lambda argument: [],
    "EMPTY_TUPLE": lambda argument: (),
    "EMPTY_SET": lambda argument: set(),
    "GLOBAL": lambda argument: Named(str(argument)),
    **dict.fromkeys(
        (
            *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
            *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
            *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        ),
        _itself,
    ),
}


def _nothing(machine: _Machine, _: Any) -> None:
    del machine


def _put(machine: _Machine, argument: Any) -> None:
    machine.memo[argument] = machine.top()


def _memoize(machine: _Machine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _get(machine: _Machine, argument: Any) -> None:
    if argument not in machine.memo:
        raise ValueError("a pickle that gets what it never put")
    machine.stack.append(machine.memo[argument])


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.stack.append(Named(f"{module} {name}"[:500]))


def _construct(machine: _Machine, _: Any) -> None:
    arguments, of = machine.pop(), machine.pop()
    is_dictionary = isinstance(of, Named) and of.name in _DICTIONARIES
    machine.stack.append({} if is_dictionary else Made(of, arguments))


def _construct_with_keywords(machine: _Machine, _: Any) -> None:
    keywords, arguments, of = machine.pop(), machine.pop(), machine.pop()
    machine.stack.append(Made(of, (arguments, keywords)))


def _construct_from_mark(machine: _Machine, _: Any) -> None:
    of, *arguments = machine.pop_to_mark() or [None]
    machine.stack.append(Made(of, tuple(arguments)))


def _instance(machine: _Machine, argument: Any) -> None:
    machine.stack.append(Made(Named(str(argument)), tuple(machine.pop_to_mark())))


def _dictionary(machine: _Machine, _: Any) -> None:
    flat = machine.pop_to_mark()
    machine.stack.append({})
    machine.set_items(flat)


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.pop_to_mark()


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    "MEMOIZE": _memoize,
    "MARK": lambda machine, argument: machine.stack.append(_MARK),
    "POP": lambda machine, argument: machine.stack.pop() if machine.stack else machine.pop(),
    "POP_MARK": _pop_mark,
    "DUP": lambda machine, argument: machine.stack.append(machine.top()),
    "TUPLE": lambda machine, argument: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, argument: machine.push_tuple(1),
    "TUPLE2": lambda machine, argument: machine.push_tuple(2),
    "TUPLE3": lambda machine, argument: machine.push_tuple(3),
    "LIST": lambda machine, argument: machine.stack.append(machine.pop_to_mark()),
    "DICT": _dictionary,
    "APPEND": lambda machine, argument: machine.append([machine.pop()]),
    "APPENDS": lambda machine, argument: machine.append(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, argument: machine.append(machine.pop_to_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, argument: machine.set_items(machine.pop_to_mark()),
    "FROZENSET": lambda machine, argument: machine.stack.append(set(filter(_is_plain, machine.pop_to_mark()))),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda machine, argument: machine.call(),
    "NEWOBJ": _construct,
    "NEWOBJ_EX": _construct_with_keywords,
    "OBJ": _construct_from_mark,
    "INST": _instance,
    "BUILD": lambda machine, argument: machine.build(),
    "BINPERSID": lambda machine, argument: machine.refer(),
}
