"""Files of tensors that look like safetensors and are not, and the parts that they are made of."""

import json


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = file_of({"x": entry()}, bytes(4))
HOSTILE = {
    "empty": b"",
    "short": b"1234567",
    "no header": file_of(b""),
    "huge length": file_of({"x": entry()}, bytes(4), length=2**64 - 1),
    "100 MB length": file_of({"x": entry()}, bytes(4), length=100_000_000),
    "length past the end": file_of({"x": entry()}, bytes(4), length=60 + 40),
    "not JSON": file_of(b"{not json}"),
    "not UTF-8": file_of(b'{"\xff":1}'),
    "a list": file_of(b"[]"),
    "leading blank": file_of(b' {"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "deep": file_of(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "same key": file_of(
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "same key inside": file_of(b'{"x":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "overlap": file_of({"x": entry(), "y": entry()}, bytes(4)),
    "partial overlap": file_of({"x": entry(), "y": entry(offsets=(2, 6))}, bytes(6)),
    "hole": file_of({"x": entry(), "y": entry(offsets=(8, 12))}, bytes(12)),
    "hole at the start": file_of({"x": entry(offsets=(4, 8))}, bytes(8)),
    "bytes left over": file_of({"x": entry()}, bytes(5)),
    "bytes missing": file_of({"x": entry()}, bytes(3)),
    "no tensor but bytes": file_of({}, bytes(4)),
    "unknown dtype": file_of({"x": entry("F99")}, bytes(4)),
    "dtype is a list": file_of({"x": entry(["F32"])}, bytes(4)),
    "wrong size": file_of({"x": entry(shape=(2,))}, bytes(4)),
    "negative shape": file_of({"x": entry(shape=(-1,))}, bytes(4)),
    "negative shapes": file_of({"x": entry(shape=(-1, -1))}, bytes(4)),
    "float shape": file_of({"x": entry(shape=(1.0,))}, bytes(4)),
    "boolean shape": file_of({"x": entry(shape=(True,))}, bytes(4)),
    "huge shape": file_of({"x": entry(shape=(2**62, 2**62))}, bytes(4)),
    "huge empty shape": file_of({"x": entry(shape=(2**62, 0), offsets=(0, 0))}),
    "very many dimensions": file_of({"x": entry(shape=[1] * 10_000)}, bytes(4)),
    "backward offsets": file_of({"x": entry(offsets=(4, 0))}, bytes(4)),
    "negative offsets": file_of({"x": entry(offsets=(-4, 0))}, bytes(4)),
    "float offsets": file_of({"x": entry(offsets=(0, 4.0))}, bytes(4)),
    "three offsets": file_of({"x": entry(offsets=(0, 4, 4))}, bytes(4)),
    "no offsets": file_of({"x": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "extra member": file_of({"x": entry() | {"code": "os.system"}}, bytes(4)),
    "entry is text": file_of({"x": "F32"}, bytes(4)),
    "NaN in the header": file_of(b'{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "metadata is a list": file_of({"__metadata__": [], "x": entry()}, bytes(4)),
    "metadata is nested": file_of({"__metadata__": {"a": {}}, "x": entry()}, bytes(4)),
    "surrogate name": file_of(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "boolean of 2": file_of({"x": entry("BOOL", (4,))}, b"\0\1\2\0"),
    "too many tensors": file_of({str(index): entry(shape=(0,), offsets=(0, 0)) for index in range(100_001)}),
}
