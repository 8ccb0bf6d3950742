"""Archives that mean harm, or are torn: what each holds, and what must become of it."""

import gzip
import io
import lzma
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.support.official_sources import jpeg, tar_bytes, zip_bytes

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
IMAGE = jpeg()


@dataclass(frozen=True)
class Case:
    """One archive.

    Attributes:
        refusal: what the error says; None if the archive is harmless.
        names: what is read from one that is harmless.
        entry: the entry that the error names, or None where none is to blame alone.
        is_large: whether it comes to so much that it is made in deep runs only.
    """

    name: str
    suffix: str
    make: Callable[[], bytes]
    refusal: str | None = None
    names: tuple[str, ...] = ("ok.jpg",)
    entry: str | None = None
    is_large: bool = False


def header(
    name: str = "x.jpg", size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname, info.mode = size, kind, link, mode
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def member(name: str, content: bytes = IMAGE, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(content), kind) + padded(content)


def tar(*parts: bytes, end: bytes = END) -> bytes:
    return member("ok.jpg") + b"".join(parts) + end


def with_field(block: bytes, offset: int, field: bytes) -> bytes:
    """Return a header with other bytes in one field and the right checksum."""
    block = block[:offset] + field + block[offset + len(field) :]
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + f"{sum(block[:BLOCK]):06o}\0 ".encode() + block[156:]


def pax(records: dict[str, str], name: str = "x.jpg", content: bytes = IMAGE) -> bytes:
    return pax_raw(b"".join(pax_record(key, value.encode()) for key, value in records.items())) + member(name, content)


def pax_record(key: str, value: bytes) -> bytes:
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    length = len(body) + len(str(length))
    return str(length).encode() + body


def pax_raw(content: bytes) -> bytes:
    return header("pax", len(content), tarfile.XHDTYPE) + padded(content)


def zipped(name: str, content: bytes = IMAGE, **fields) -> bytes:
    """Return a zip file with `ok.jpg` and one more entry, whose fields in the directory are as given."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ok.jpg", IMAGE)
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, content)
        for field, value in fields.items():
            setattr(archive.filelist[-1], field, value)
    return buffer.getvalue()


def zip_renamed(old: bytes, new: bytes) -> bytes:
    """Return a zip file whose second entry's name was changed into another of the same length, in both places."""
    return zipped(old.decode()).replace(old, new)


def zip_with_shared_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("ok.jpg", bytes(100_000))
        for number in range(50):
            info = zipfile.ZipInfo(f"{number}.jpg")
            info.CRC, info.file_size, info.compress_size = archive.filelist[0].CRC, 100_000, 100_000
            info.header_offset = 0
            archive.filelist.append(info)
        archive.NameToInfo["again"] = archive.filelist[-1]
        archive._didModify = True
    return buffer.getvalue()


def zip_with_long_directory() -> bytes:
    """Return the end of a zip file that announces a directory of a million entries."""
    num_entries, num_bytes = 1_000_000, 60_000_000
    entry = b"PK\x01\x02" + bytes(42)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, num_entries, num_entries, num_bytes, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, num_bytes, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return b"PK\x03\x04" + entry * (num_bytes // len(entry)) + bytes(num_bytes % len(entry) - 4) + end64 + locator + end


def gzip_bomb(num_bytes: int) -> bytes:
    """Return a tar of one image of zeros, packed a thousand to one."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
        file.write(header("bomb.jpg", num_bytes))
        for _ in range(num_bytes >> 20):
            file.write(bytes(1 << 20))
        file.write(END)
    return buffer.getvalue()


def many_entries(num_entries: int) -> bytes:
    block = header("0000000.jpg")
    total = sum(block[:BLOCK]) - sum(block[148:156]) + 8 * 32 - 7 * 48
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
        for number in range(num_entries):
            digits = f"{number:07d}".encode()
            checksum = f"{total + sum(digits):06o}\0 ".encode()
            file.write(digits + block[7:148] + checksum + block[156:])
        file.write(END)
    return buffer.getvalue()


def nested_bomb() -> bytes:
    """42.zip in small: zips of zips of a bomb; harmless as long as nobody opens them."""
    content = zip_bytes({"0.dll": bytes(10_000_000)})
    for _ in range(3):
        content = zip_bytes({f"lib {number}.zip": content for number in range(4)})
    return zip_bytes({"ok.jpg": IMAGE, "lib.zip": content})


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


def with_name(name: str, refusal: str | None, shown: str | None = None) -> Iterator[Case]:
    names = ("ok.jpg", name) if refusal is None else ()
    entry = None if refusal is None else shown or name
    yield Case(f"tar, {name[:40]!a}", ".tar", lambda: tar(pax({"path": name})), refusal, names, entry)
    yield Case(f"zip, {name[:40]!a}", ".zip", lambda: zipped(name), refusal, names, entry)


NAMES = (
    ("../x.jpg", "a path out of the folder"), ("a/../../x.jpg", "a path out of the folder"),
    ("a/..", "a path out of the folder"),
    ("/etc/x.jpg", "an absolute path"), ("//host/share/x.jpg", "an absolute path"),
    ("C:/x.jpg", "a drive"), ("..\\..\\x.jpg", "a backslash"),
    ("C:\\x.jpg", "a backslash"), ("a\nb.jpg", "control characters"), ("a\x1b[2Jb.jpg", "control characters"),
    ("a/" * 40 + "x.jpg", "41 folders"), ("CON", None), ("aux.jpg", None), ("dot.", None), ("a b\u202egpj.exe", None),
    ("naïve/ünïcode.jpg", None),
)  # fmt: skip


def named_cases() -> Iterator[Case]:
    for name, refusal in NAMES:
        yield from with_name(name, refusal)
    yield Case("tar, name of 5,000 letters", ".tar", lambda: tar(pax({"path": "a" * 5000})), "5000 letters")
    yield Case("zip, name of 5,000 letters", ".zip", lambda: zipped("a" * 5000), "5000 letters")
    yield Case("tar, part of 300 bytes", ".tar", lambda: tar(pax({"path": "ü" * 150})), "more than 255 bytes")
    yield Case("tar, NUL in a name", ".tar", lambda: tar(pax({"path": "a\0/../../b"})), "expected a name|can't be read")
    yield Case("zip, NUL in a name", ".zip", lambda: zip_renamed(b"aXb.jpg", b"a\0b.jpg"), "control characters")
    yield Case(
        "tar, no UTF-8", ".tar", lambda: tar(with_field(header("abc"), 0, b"a\xff\xfe")), "bytes that are not UTF-8"
    )
    yield Case("tar, empty name", ".tar", lambda: tar(with_field(header("abc"), 0, bytes(3))), "no name")
    yield Case("tar, a file called .", ".tar", lambda: tar(member(".")), "no name")
    yield Case("tar, the folder .", ".tar", lambda: tar(header("./", 0, tarfile.DIRTYPE)))
    for suffix, pack in ((".tar", tar_twice), (".zip", zip_twice)):
        yield Case(
            f"{suffix}, name twice",
            suffix,
            lambda pack=pack: pack("a.jpg", "a.jpg"),
            "expected a unique name",
            entry="a.jpg",
        )
        yield Case(
            f"{suffix}, name in two cases", suffix, lambda pack=pack: pack("a.jpg", "A.JPG"), "expected a unique name"
        )
        yield Case(f"{suffix}, ß and ss", suffix, lambda pack=pack: pack("aß.jpg", "ass.jpg"), "expected a unique name")
        yield Case(
            f"{suffix}, composed twice",
            suffix,
            lambda pack=pack: pack("\xe9.jpg", "e\u0301.jpg"),
            "expected a unique name",
        )


def tar_twice(first: str, second: str) -> bytes:
    return tar(member(first), member(second))


def zip_twice(first: str, second: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(first, IMAGE)
        archive.writestr("Z" * len(second.encode()), IMAGE)
    return buffer.getvalue().replace(b"Z" * len(second.encode()), second.encode()) if second.isascii() else zip_bytes(
        {first: IMAGE, second: IMAGE}
    )  # fmt: skip


def tar_cases() -> Iterator[Case]:
    def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> bytes:
        return header(name, 0, kind, target)

    through = lambda: tar(link("out", "/tmp"), member("out/x.jpg"))  # noqa: E731
    yield Case("symlink out", ".tar", lambda: tar(link("x.jpg", "../../../etc/passwd")))
    yield Case("file through a symlink", ".tar", through, names=("ok.jpg", "out/x.jpg"))
    yield Case("hard link out", ".tar", lambda: tar(link("x.jpg", "/etc/passwd", tarfile.LNKTYPE)))
    yield Case("symlink to itself", ".tar", lambda: tar(link("x.jpg", "x.jpg")))
    chain = [link(f"{number}", f"{number + 1}") for number in range(500)]
    yield Case("chain of 500 links", ".tar", lambda: tar(*chain))
    yield Case(
        "character device", ".tar", lambda: tar(header("x.jpg", kind=tarfile.CHRTYPE)), "a device", entry="x.jpg"
    )
    yield Case("block device", ".tar", lambda: tar(header("x.jpg", kind=tarfile.BLKTYPE)), "a device", entry="x.jpg")
    yield Case("pipe", ".tar", lambda: tar(header("x.jpg", kind=tarfile.FIFOTYPE)), "a pipe", entry="x.jpg")
    yield Case("unknown kind", ".tar", lambda: tar(header("x.jpg", kind=b"Z")), "an entry of kind", entry="x.jpg")
    yield Case("setuid", ".tar", lambda: tar(header("x.jpg", mode=0o4777)), names=("ok.jpg", "x.jpg"))
    sparse = with_field(header("x.jpg", kind=tarfile.GNUTYPE_SPARSE), 483, b"77777777777\0")
    yield Case("sparse, old", ".tar", lambda: tar(sparse), "a sparse file|0 to", entry="x.jpg")
    keys = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "x.jpg",
        "GNU.sparse.realsize": "9" * 12,
    }
    yield Case("sparse, new", ".tar", lambda: tar(pax(keys, content=padded(b"1\n0\n5\n"))), "sparse|0 to|can't be read")
    endless = padded(b"99999999999\n" + b"0\n" * 3_000_000)
    yield Case("sparse map without end", ".tar", lambda: tar(pax(keys, content=endless)), "a megabyte of headers")
    yield Case("size of 8 GB", ".tar", lambda: tar(header("x.jpg", 8**11 - 1)), "expected|end")
    size = b"\x80\0\0\0" + (2**62).to_bytes(8)
    yield Case("size of 2^62", ".tar", lambda: tar(with_field(header("x.jpg"), 124, size)), "0 to", entry="x.jpg")
    yield Case("size of -1", ".tar", lambda: tar(with_field(header("x.jpg"), 124, b"\xff" * 12)), "expected 0 to|back")
    yield Case("size of -1,000,000 in pax", ".tar", lambda: tar(pax({"size": "-1000000"})), "expected 0 to|back")
    yield Case("size in pax that is none", ".tar", lambda: tar(pax({"size": "1e400"})), "end mark")
    yield Case("pax of 30 MB", ".tar", lambda: tar(pax({"path": "a" * 30_000_000})), "a megabyte of headers")
    yield Case(
        "pax of length 0", ".tar", lambda: tar(pax_raw(b"0 path=x\n"), member("x.jpg")), "can't be read|end mark"
    )
    yield Case(
        "pax that is no UTF-8",
        ".tar",
        lambda: tar(pax_raw(pax_record("path", b"\xff\xfe")), member("x.jpg")),
        "bytes that are not UTF-8",
    )
    long_name = header("././@LongLink", 10**9, tarfile.GNUTYPE_LONGNAME)
    yield Case(
        "long name of 1 GB",
        ".tgz",
        lambda: gzip.compress(tar(long_name, bytes(40_000_000))),
        "a megabyte of headers|packed",
    )
    yield Case(
        "5,000 headers of one file",
        ".tar",
        lambda: tar(*[pax_raw(pax_record("a", b"b"))] * 5000),
        "a megabyte|can't be read",
    )
    yield Case(
        "entry larger than any image",
        ".tar",
        lambda: tar(member("x.jpg", bytes(70 << 20))),
        "expected at most 67,108,864",
        entry="x.jpg",
    )
    yield Case("ratio bomb", ".tgz", lambda: gzip_bomb(60 << 20), "unpacked bytes per packed byte")
    yield Case(
        "ratio bomb of 4 GB",
        ".tgz",
        lambda: gzip_bomb(4 << 30),
        "unpacked bytes per packed byte|at most",
        is_large=True,
    )
    yield Case(
        "a million entries",
        ".tgz",
        lambda: many_entries(1_000_000),
        "at most 300,000 entries|per packed byte",
        is_large=True,
    )


def torn_cases() -> Iterator[Case]:
    sound = tar(*[member(f"{number}.jpg", random.Random(number).randbytes(4000)) for number in range(10)])
    packed = gzip.compress(sound)
    archive = zip_bytes({f"{number}.jpg": random.Random(number).randbytes(4000) for number in range(10)})
    yield Case("tar, cut in a file", ".tar", lambda: sound[:8000], "can't be read|end mark")
    yield Case("tar, cut in a header", ".tar", lambda: sound[: 20 * BLOCK + 100], "can't be read|end mark")
    yield Case("tar, cut between files", ".tar", lambda: tar(end=b""), "end mark")
    yield Case(
        "tar, broken header in the middle",
        ".tar",
        lambda: tar(flipped(header("x.jpg"), 10), member("y.jpg")),
        "end mark",
    )
    yield Case("tar, garbage in the middle", ".tar", lambda: tar(b"\x01" * BLOCK), "end mark")
    yield Case("tgz, cut", ".tgz", lambda: packed[: len(packed) // 2], "can't be read")
    yield Case("tgz, checksum cut off", ".tgz", lambda: packed[:-8], "can't be read")
    yield Case("tgz, wrong checksum", ".tgz", lambda: flipped(packed, len(packed) - 6), "can't be read")
    yield Case("tgz, bytes after its end", ".tgz", lambda: packed + b"garbage", "can't be read")
    yield Case("tgz, zeros after its end", ".tgz", lambda: gzip.compress(tar()) + bytes(1000))
    yield Case("empty file", ".tar", lambda: b"", "can't be read")
    yield Case("text", ".tar", lambda: b"<html>404 not found</html>" * 100, "can't be read")
    yield Case("tar in xz", ".tar", lambda: lzma.compress(sound), "can't be read")
    yield Case("zip, directory cut off", ".zip", lambda: archive[:-100], "can't be read")
    yield Case("zip, flipped content", ".zip", lambda: flipped(archive, 2000), "can't be read", entry="0.jpg")
    yield Case("zip, nothing but its end", ".zip", lambda: zip_bytes({}), names=())


def zip_cases() -> Iterator[Case]:
    yield Case("encrypted", ".zip", lambda: zipped("x.jpg", flag_bits=1), "an encrypted one", entry="x.jpg")
    yield Case("wrong CRC", ".zip", lambda: zipped("x.jpg", CRC=12345), "can't be read", entry="x.jpg")
    yield Case(
        "method LZMA", ".zip", lambda: zipped("x.jpg", compress_type=zipfile.ZIP_LZMA), "method 14", entry="x.jpg"
    )
    yield Case("method nobody knows", ".zip", lambda: zipped("x.jpg", compress_type=77), "method 77", entry="x.jpg")
    yield Case(
        "says 10 bytes, holds 60 MB",
        ".zip",
        lambda: zipped("x.jpg", bytes(60_000_000), file_size=10),
        "can't be read",
        entry="x.jpg",
    )
    yield Case(
        "says 1 GB, holds 100 bytes",
        ".zip",
        lambda: zipped("x.jpg", bytes(100), file_size=2**30),
        "unpacked bytes per packed byte",
        entry="x.jpg",
    )
    yield Case(
        "says more than it holds",
        ".zip",
        lambda: zipped("x.jpg", file_size=10**6),
        "expected|can't be read",
        entry="x.jpg",
    )
    yield Case("says 2^60 bytes", ".zip", lambda: zipped("x.jpg", file_size=2**60), "bytes unpacked")
    yield Case(
        "ratio bomb in zip",
        ".zip",
        lambda: zipped("x.jpg", bytes(60_000_000)),
        "unpacked bytes per packed byte",
        entry="x.jpg",
    )
    yield Case("zips of zips", ".zip", nested_bomb, names=("ok.jpg", "lib.zip"))
    yield Case("shared bytes", ".zip", zip_with_shared_bytes, "share their bytes")
    yield Case("directory of a million entries", ".zip", zip_with_long_directory, "directory of at most")
    yield Case("symlink in zip", ".zip", lambda: zipped("x.jpg", b"/etc/passwd", external_attr=0o120777 << 16))
    yield Case(
        "pipe in zip",
        ".zip",
        lambda: zipped("x.jpg", external_attr=0o010644 << 16),
        "a device or a pipe",
        entry="x.jpg",
    )
    yield Case(
        "device in zip",
        ".zip",
        lambda: zipped("x.jpg", external_attr=0o060644 << 16),
        "a device or a pipe",
        entry="x.jpg",
    )
    yield Case(
        "offset beyond the end", ".zip", lambda: zipped("x.jpg", header_offset=10**6), "can't be read", entry="x.jpg"
    )
    yield Case(
        "other name inside",
        ".zip",
        lambda: zipped("x.jpg", orig_filename="y.jpg", filename="y.jpg"),
        "can't be read",
        entry="y.jpg",
    )


def all_cases(every: bool) -> list[Case]:
    cases = [*named_cases(), *tar_cases(), *torn_cases(), *zip_cases()]
    return [case for case in cases if every or not case.is_large]


def sound_archives() -> list[tuple[str, bytes]]:
    """Return archives to mutate: a tar, one with long names, a packed one, a zip."""
    files = {f"train/class {number % 3}/{number}.jpg": jpeg(number) for number in range(6)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"ü{'long' * 30}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return [
        (".tar", tar_bytes(files)),
        (".tar", buffer.getvalue()),
        (".tgz", tar_bytes(files, "gz")),
        (".zip", zip_bytes(files)),
    ]
