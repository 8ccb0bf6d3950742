"""One image file: every mode becomes the right upright RGB, and every bad file is named in one line."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from warnings import catch_warnings, simplefilter

import numpy as np
import pytest
from PIL import Image, ImageOps

from raysnap.datasets import image_file as images
from raysnap.datasets.image_file import num_bad_allowed, read_image
from raysnap.errors import DataError
from tests.support.bad_images import BAD, JPEG, PNG, encoded, noise_image, png, png_chunk

IS_DEEP = os.environ.get("RAYSNAP_DEEP") == "1"
SEED = int(os.environ.get("RAYSNAP_SEED", "0"))
NUM_MUTATED = 10_000 if IS_DEEP else 150

MAX_RSS_BYTES = 2 * 10**9
ORIENTATION = 274


def save(path: Path, image: Image.Image, form: str, **options: object) -> Path:
    image.save(path, form, **options)
    return path


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# Modes


GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
THREE_GRAYS = np.stack([GRAY] * 3, axis=2)


@pytest.mark.parametrize(
    ("form", "samples"),
    [
        ("PNG", GRAY),
        ("PNG", GRAY.astype(np.uint16) * 257),
        ("TIFF", GRAY.astype(np.uint16) * 257),
        ("TIFF", (GRAY.astype(np.uint16) * 257).astype(">u2")),
        ("TIFF", GRAY.astype(np.int32) * 257),
        ("TIFF", GRAY.astype(np.float32)),
        ("TIFF", GRAY.astype(np.float32) / 255),
        ("PPM", GRAY.astype(np.int32) * 257),
    ],
    ids=["8", "16", "16 TIFF", "16 TIFF big-endian", "32 TIFF", "float 0..255", "float 0..1", "PGM 16"],
)
def test_gray_of_any_depth_is_scaled_to_8_bits(tmp_path, form, samples):
    path = save(tmp_path / "it.png", Image.fromarray(samples), form)
    assert np.array_equal(pixels(read_image(path)), THREE_GRAYS)


@pytest.mark.parametrize("samples", [GRAY.astype(np.float32) * 1000 - 5000, GRAY.astype(np.int32) * 10_000 - 9])
def test_samples_of_unknown_range_are_stretched(tmp_path, samples):
    found = pixels(read_image(save(tmp_path / "it.tif", Image.fromarray(samples), "TIFF")))
    assert (found.min(), found.max()) == (0, 255)
    assert np.array_equal(found[..., 0], np.rint(GRAY * (255 / GRAY.max())))


def test_samples_that_are_not_finite_are_black(tmp_path):
    samples = np.array([[np.nan, 1.0], [np.inf, 0.5]], dtype=np.float32)
    found = pixels(read_image(save(tmp_path / "it.tif", Image.fromarray(samples), "TIFF")))
    assert found[..., 0].tolist() == [[0, 255], [0, 128]]


def test_colours_of_16_bits_keep_their_upper_8(tmp_path):
    samples = np.arange(2 * 4 * 3, dtype=np.uint16).reshape(2, 4, 3) * 2700
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    (tmp_path / "it.png").write_bytes(png(4, 2, bits=16, pixels=zlib.compress(rows)))
    assert np.array_equal(pixels(read_image(tmp_path / "it.png")), samples >> 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "RGB"])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_other_modes_become_rgb_as_torchvision_makes_them(tmp_path, mode, form):
    image = noise_image(20, 15).convert(mode)
    if form == "TIFF" and mode == "P":
        image = image.quantize(100)
    path = save(tmp_path / "it.jpg", image, form)
    assert np.array_equal(pixels(read_image(path)), pixels(Image.open(path).convert("RGB")))
    assert np.array_equal(pixels(read_image(path)), pixels(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes(range(100))])
def test_a_palettes_transparency_is_dropped(tmp_path, transparency):
    image = noise_image(20, 15).quantize(100)
    path = save(tmp_path / "it.png", image, "PNG", transparency=transparency)
    with catch_warnings():
        simplefilter("ignore")
        assert np.array_equal(pixels(read_image(path)), pixels(image.convert("RGB")))


def test_what_shines_through_keeps_its_colour(tmp_path):
    image = Image.new("RGBA", (5, 4), (10, 200, 30, 0))
    assert read_image(save(tmp_path / "it.png", image, "PNG")).getpixel((2, 2)) == (10, 200, 30)


@pytest.mark.parametrize(("ink", "expected"), [((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0), ((255, 255, 255, 0), 0)])
def test_the_inks_of_a_cmyk_jpeg_become_light(tmp_path, ink, expected):
    path = save(tmp_path / "it.jpg", Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
    assert abs(pixels(read_image(path)) - expected).max() <= 2


@pytest.mark.parametrize(
    ("stored", "expected"), [((0, 128, 128, 255), 255), ((255, 128, 128, 255), 0), ((0, 128, 128, 0), 0)]
)
def test_the_luma_of_a_ycck_jpeg_is_the_opposite_of_its_light(tmp_path, stored, expected):
    """The last byte of Adobe's marker says what four channels are: 0 is CMYK, 2 is YCCK, both inverted."""
    cmyk = encoded(Image.new("CMYK", (16, 16), tuple(255 - value for value in stored)), quality=100)
    at = cmyk.index(b"Adobe") + 11
    assert cmyk[at] == 0
    (tmp_path / "it.jpg").write_bytes(cmyk[:at] + b"\2" + cmyk[at + 1 :])
    assert abs(pixels(read_image(tmp_path / "it.jpg")) - expected).max() <= 2


def test_the_first_frame_is_the_image(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        path = save(tmp_path / f"it.{form}", frames[0], form, save_all=True, append_images=frames[1:])
        red, green, blue = read_image(path).getpixel((4, 4))
        assert red > 250 and green < 5 and blue < 5


def test_the_content_counts_and_not_the_name(tmp_path):
    (tmp_path / "it.jpg").write_bytes(PNG)
    assert np.array_equal(pixels(read_image(tmp_path / "it.jpg")), pixels(noise_image(64, 48)))


def test_one_pixel_is_an_image(tmp_path):
    for form in ("JPEG", "PNG", "GIF", "BMP", "WEBP"):
        assert read_image(save(tmp_path / "it", Image.new("RGB", (1, 1), "white"), form)).size == (1, 1)


# EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_image_is_turned_upright_once(tmp_path, form, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / "it", noise_image(24, 16), form, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert expected.size == ((16, 24) if orientation >= 5 else (24, 16))
    assert np.array_equal(pixels(read_image(path)), pixels(expected))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage" * 9,
        b"Exif\0\0II*\0" + struct.pack("<I", 2**31),
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, ORIENTATION, 2, 4, 0xFFFF),
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIHH", 1, ORIENTATION, 3, 1, 99, 0) + bytes(4),
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 65535) + bytes(200),
        b"Exif\0\0MM\0*" + struct.pack(">I", 8) + struct.pack(">HHHI", 1, ORIENTATION, 12, 2**31 - 1),
        b"Exif\0\0" + bytes(65_000),
    ],
)
def test_a_corrupt_orientation_is_ignored(tmp_path, exif):
    marker = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (tmp_path / "it.jpg").write_bytes(JPEG[:2] + marker + JPEG[2:])
    with catch_warnings():
        simplefilter("ignore")
        assert np.array_equal(pixels(read_image(tmp_path / "it.jpg")), pixels(Image.open(io.BytesIO(JPEG))))


def test_a_large_text_that_is_no_bomb_is_let_pass(tmp_path):
    text = png_chunk(b"tEXt", b"name\0" + b"word " * 100_000)
    (tmp_path / "it.png").write_bytes(PNG[:33] + text + PNG[33:])
    assert read_image(tmp_path / "it.png").size == (64, 48)


# Bad files


def lay_out(folder: Path) -> dict[str, Path]:
    """Every bad file, made in a folder, by what it is."""
    paths = {}
    for number, (kind, (make, _)) in enumerate(BAD.items()):
        paths[kind] = folder / f"{number:02d}.jpg"
        make(paths[kind])
    if os.geteuid() == 0:
        del paths["no permission"]
    return paths


READER = """
import json, sys, warnings
from pathlib import Path
from raysnap.errors import DataError
from raysnap.datasets.image_file import read_image
warnings.simplefilter("ignore")
for line in sys.stdin:
    try:
        reason = f"no fault: {read_image(Path(json.loads(line))).size}"
    except DataError as error:
        reason = str(error)
    # The most this process held; getrusage would count what its parent held before exec.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(json.dumps([reason, 1024 * int(peak.split()[1])]))
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict[str, tuple[Path, str, int]]:
    """Of each bad file, read one after the other in one process: its path, the reason, and the most memory so far."""
    paths = lay_out(tmp_path_factory.mktemp("bad"))
    lines = "".join(f"{json.dumps(str(path))}\n" for path in paths.values())
    command = [sys.executable, "-c", READER]
    finished = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    answers = [json.loads(line) for line in finished.stdout.splitlines()]
    return {kind: (path, *answer) for (kind, path), answer in zip(paths.items(), answers, strict=True)}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_in_one_line_with_its_reason(verdicts, kind):
    if kind not in verdicts:
        pytest.skip("the superuser may read everything")
    path, reason, _ = verdicts[kind]
    assert reason.startswith(f"{path}: expected ")
    assert re.search(BAD[kind][1], reason), reason
    assert "\n" not in reason


def test_all_bad_files_together_stay_within_two_gigabytes(verdicts):
    most = {kind: rss_bytes for kind, (_, _, rss_bytes) in verdicts.items()}
    assert max(most.values()) < MAX_RSS_BYTES, most


def why_bad(path: Path) -> str | None:
    """Return the reason why an image can't be read; None where it can."""
    with catch_warnings():
        simplefilter("ignore")
        try:
            return None if read_image(path).mode == "RGB" else "read_image: expected RGB"
        except DataError as error:
            return str(error)


def test_mutated_jpegs_are_read_or_refused_in_one_line(tmp_path):
    rng = np.random.default_rng([SEED, 0xF022])
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    sources = [
        encoded(noise_image(96, 64), exif=exif),
        encoded(noise_image(96, 64), progressive=True),
        encoded(noise_image(96, 64).convert("CMYK")),
        encoded(noise_image(96, 64).convert("L"), quality=30),
    ]
    path = tmp_path / "it.jpg"
    verdicts = {"read": 0, "named": 0}
    for number in range(NUM_MUTATED):
        content = bytearray(sources[number % len(sources)])
        # Half of the mutations hit the headers, where all structure is.
        reach = len(content) if number % 2 else 700
        for position in rng.integers(0, min(reach, len(content)), rng.integers(1, 9)):
            content[position] = rng.integers(256)
        if rng.random() < 0.2:
            del content[rng.integers(len(content)) :]
        path.write_bytes(content)
        reason = why_bad(path)
        verdicts["read" if reason is None else "named"] += 1
        assert reason is None or (reason.startswith(f"{path}: expected ") and "\n" not in reason)
    assert min(verdicts.values()) > NUM_MUTATED / 20, verdicts


# How many may be bad


@pytest.mark.parametrize(
    ("num_images", "max_bad", "expected"),
    [(10, 0.001, 1), (0, 0.001, 1), (5000, 0.001, 5), (10, 0.5, 5), (10, 0, 0), (7, 1, 7)],
)
def test_a_fraction_of_images_may_be_bad_but_one_at_least(num_images, max_bad, expected):
    assert num_bad_allowed(num_images, max_bad) == expected


@pytest.mark.parametrize("max_bad", [-0.1, 1.1, float("nan")])
def test_what_is_no_fraction_is_refused(max_bad):
    with pytest.raises(ValueError, match="max_bad: expected a fraction"):
        num_bad_allowed(10, max_bad)


def test_results_come_in_the_order_of_the_indices():
    assert images.for_each_image(lambda index: index * index, [3, 1, 2]) == [9, 1, 4]
