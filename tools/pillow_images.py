"""Read every image of Pillow's own tests, and compare those of more than 8 bits with other libraries.

    git clone --depth 1 https://github.com/python-pillow/Pillow
    pip install tifffile imagecodecs opencv-python-headless
    .venv/bin/python tools/pillow_images.py Pillow/Tests/images

Each file must be read, or refused in one line that names it. What the samples of a file are is asked of tifffile (TIFF)
or OpenCV (others), and the 8 bits that they become are computed here by the rule in words: the upper 8 of the fewest
bits, an even number from 8 on, that hold the largest sample. Prints one JSON document; exit code 1 where something is
wrong.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from raysnap.datasets.image_file import read_shallow
from raysnap.errors import DataError

EXPLAINED = {
    "9bit.j2k": "the file says 9 bits, of which the upper 8 are kept; OpenCV returns them without saying so",
    "hopper_be.pfm": "OpenCV reads other floats from it than from hopper.pfm, which holds the same picture",
    "tiff_16bit_RGBa.tiff": "colours are stored multiplied by their opacity; Pillow divides, tifffile does not",
    "tiff_strip_planar_16bit_RGBa.tiff": "as tiff_16bit_RGBa.tiff",
    "tiff_tiled_planar_16bit_RGBa.tiff": "as tiff_16bit_RGBa.tiff",
}


def main(folder: Path) -> int:
    """Read the files of the folder; return the exit code."""
    warnings.simplefilter("ignore")
    read, refused, wrong = 0, Counter[str](), []
    compared: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        place = path.relative_to(folder).as_posix()
        try:
            image, num_bits = read_shallow(path)
        except DataError as error:
            refused[str(error).replace(str(path), "FILE").partition(": ")[2][:70]] += 1
            wrong += [] if str(path) in str(error) and "\n" not in str(error) else [f"{place}: not named: {error}"]
            continue
        except Exception as error:  # noqa: BLE001 - what is looked for
            wrong.append(f"{place}: {type(error).__name__}: {error}")
            continue
        read += 1
        if num_bits is None:
            continue
        samples = samples_of(path)
        if samples is None or samples.shape[:2] != image.size[::-1]:
            compared[place] = {"bits": num_bits, "reference": None}
            continue
        difference = int(np.abs(np.asarray(image).astype(int) - expected(samples)).max())
        compared[place] = {"bits": num_bits, "reference": str(samples.dtype), "largest_difference": difference}
        if difference > 1 and place in EXPLAINED:
            compared[place]["explained"] = EXPLAINED[place]
        elif difference > 1:
            wrong.append(f"{place}: differs by {difference} from the reference")
    document = {"read": read, "refused": dict(refused.most_common()), "more_than_8_bits": compared, "wrong": wrong}
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
    return 1 if wrong else 0


def expected(samples: np.ndarray) -> np.ndarray:
    """Return what samples `[H, W]` or `[H, W, 3]` become, as whole numbers `[H, W, 3]`."""
    values = np.nan_to_num(samples.astype(np.float64), posinf=0.0, neginf=0.0)
    if values.min() < 0:
        shallow = np.rint((values - values.min()) * 255 / (values.max() - values.min()))
    elif samples.dtype.kind == "f" and values.max() <= 1:
        shallow = np.rint(values * 255)
    else:
        num_bits = next(bits for bits in range(8, 65, 2) if values.max() < 2**bits)
        shallow = np.floor(values / 2 ** (num_bits - 8))
    return shallow[..., None].repeat(3, axis=2) if shallow.ndim == 2 else shallow


def samples_of(path: Path) -> np.ndarray | None:
    """Return the samples of a file by another library, without transparency; None where it can't read them."""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            import tifffile

            samples = tifffile.imread(path, key=0)
        else:
            import cv2

            read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            samples = read[..., 2::-1] if read is not None and read.ndim == 3 and read.shape[2] >= 3 else read
    except Exception:  # noqa: BLE001 - no reference, then
        return None
    if samples is None or samples.dtype == np.uint8 or samples.ndim not in (2, 3):
        return None
    if samples.ndim == 3 and samples.shape[0] in (3, 4) and samples.shape[2] > 4:  # plane by plane
        samples = samples.transpose(1, 2, 0)
    if samples.ndim == 3 and samples.shape[2] in (2, 4):
        samples = samples[..., :-1]
    return samples[..., 0] if samples.ndim == 3 and samples.shape[2] == 1 else samples


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
