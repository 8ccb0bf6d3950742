"""A contact sheet of a dataset, one PNG that shows what is in it: a row per class, a group of columns per split.

Classes are picked evenly and images from a seed; a class's bad files come first, as crossed-out tiles.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from raysnap.datasets.dataset import Dataset, Item
from raysnap.datasets.image_file import for_each_image, read_image
from raysnap.datasets.image_folder import CLASS_NAMES_NAME
from raysnap.datasets.layout.splits import SPLITS
from raysnap.errors import DataError
from raysnap.humanize import plural

MAX_CLASSES = 20
NUM_COLUMNS = 10
MAX_BAD_PER_CELL = 2

TILE_PX, GAP_PX, ROW_GAP_PX, SPLIT_GAP_PX = 112, 6, 14, 26
MARGIN_PX, LABEL_PX, HEADER_PX = 36, 250, 104

Colour: TypeAlias = tuple[int, int, int]

PAPER, INK, QUIET, LINE = (250, 250, 248), (28, 30, 34), (122, 126, 134), (226, 227, 229)
BAD, BAD_PAPER = (192, 57, 43), (252, 236, 233)


class Cell(NamedTuple):
    """The images of one class and split that are shown, and how many there are in all."""

    items: tuple[Item, ...]
    num_items: int


def check_sheet_path(path: Path) -> None:
    """Raise DataError where no PNG can be written at this path, before any work is done for it."""
    if path.suffix.lower() != ".png":
        raise DataError(f"--sheet {path}: expected a file name that ends in .png, found {path.suffix or 'no suffix'}")
    if not path.parent.is_dir():
        raise DataError(f"--sheet {path}: expected an existing folder, found no {path.parent}; create it")
    if path.is_dir():
        raise DataError(f"--sheet {path}: expected a file name, found a folder")


def write_contact_sheet(dataset: Dataset, bad_paths: Collection[Path], out_path: Path, seed: int = 0) -> None:
    """Draw the sheet into `out_path`: at most 20 classes of 10 images; `bad_paths` can't be decoded.

    Raises:
        DataError: the file can't be written.
    """
    labels = evenly_chosen(len(dataset.classes), MAX_CLASSES)
    widths = _num_columns([split for split in SPLITS if split in dataset.splits])
    bad = frozenset(bad_paths)
    rows = {
        label: {split: _cell(dataset, split, label, num, bad, seed) for split, num in widths.items()}
        for label in labels
    }
    paths = [item.path for row in rows.values() for cell in row.values() for item in cell.items]
    drawn = for_each_image(lambda i: None if paths[i] in bad else square_tile(paths[i]), range(len(paths)))
    tiles = dict(zip(paths, drawn, strict=True))
    sheet = _draw(dataset, rows, widths, tiles)
    try:
        check_sheet_path(out_path)
        sheet.save(out_path, "PNG")
    except OSError as error:
        raise DataError(f"--sheet {out_path}: can't be written: {error.strerror or error}") from None


def evenly_chosen(num_all: int, num_wanted: int) -> list[int]:
    """Return at most `num_wanted` of the indices below `num_all`, evenly spaced, including the first and the last."""
    if num_all <= num_wanted:
        return list(range(num_all))
    return [round(i * (num_all - 1) / (num_wanted - 1)) for i in range(num_wanted)]


def _num_columns(splits: Sequence[str]) -> dict[str, int]:
    """Return how many images of each split a row shows: train gets the most."""
    if len(splits) == 1:
        return {splits[0]: NUM_COLUMNS}
    num_other = 3 if len(splits) == 2 else 2
    return {split: num_other if split != "train" else NUM_COLUMNS - num_other * (len(splits) - 1) for split in splits}


def _cell(dataset: Dataset, split: str, label: int, num_shown: int, bad: frozenset[Path], seed: int) -> Cell:
    items = [item for item in dataset.splits[split] if item.label == label]
    bad_items = [item for item in items if item.path in bad][:MAX_BAD_PER_CELL]
    good_items = [item for item in items if item.path not in bad]
    num_good = min(num_shown - len(bad_items), len(good_items))
    picked = random.Random(f"{seed} {split} {dataset.classes[label]}").sample(range(len(good_items)), num_good)
    return Cell((*bad_items, *(good_items[i] for i in sorted(picked))), len(items))


def square_tile(path: Path) -> Image.Image | None:
    """Return the image's central square, 112 pixels wide, without smoothing small images; None where it is bad."""
    try:
        image = read_image(path)
    except DataError:
        return None
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    resampling = Image.Resampling.NEAREST if 2 * side <= TILE_PX else Image.Resampling.LANCZOS
    return image.resize((TILE_PX, TILE_PX), resampling)


def _draw(
    dataset: Dataset,
    rows: dict[int, dict[str, Cell]],
    widths: dict[str, int],
    tiles: dict[Path, Image.Image | None],
) -> Image.Image:
    lefts, left = {}, MARGIN_PX + LABEL_PX
    for split, num in widths.items():
        lefts[split] = left
        left += num * (TILE_PX + GAP_PX) - GAP_PX + SPLIT_GAP_PX
    width = left - SPLIT_GAP_PX + MARGIN_PX
    height = HEADER_PX + len(rows) * (TILE_PX + ROW_GAP_PX) - ROW_GAP_PX + MARGIN_PX
    sheet = Image.new("RGB", (width, height), PAPER)
    canvas = ImageDraw.Draw(sheet)
    _draw_header(canvas, dataset, len(rows), lefts, width)
    names = _class_names(dataset)
    for row_index, (label, cells) in enumerate(rows.items()):
        top = HEADER_PX + row_index * (TILE_PX + ROW_GAP_PX)
        if row_index:
            middle = top - ROW_GAP_PX // 2 - 1
            canvas.line((MARGIN_PX, middle, width - MARGIN_PX, middle), fill=LINE)
        counts = " / ".join(f"{cell.num_items:,}" for cell in cells.values())
        _draw_label(canvas, names[label], counts, top)
        for split, cell in cells.items():
            for column, item in enumerate(cell.items):
                corner = (lefts[split] + column * (TILE_PX + GAP_PX), top)
                tile = tiles[item.path]
                if tile is None:
                    _draw_bad(canvas, item.path.name, corner)
                else:
                    sheet.paste(tile, corner)
    return sheet


def _draw_header(
    canvas: ImageDraw.ImageDraw, dataset: Dataset, num_shown: int, lefts: dict[str, int], width: int
) -> None:
    classes = plural(len(dataset.classes), "class", "classes")
    shown = classes if num_shown == len(dataset.classes) else f"{num_shown} of {classes}"
    title = _fitting(dataset.name, 28, width - 2 * MARGIN_PX - 260)
    _write(canvas, (MARGIN_PX, 26), title, 28, INK)
    _write(canvas, (MARGIN_PX + _length(title, 28) + 16, 36), shown, 18, QUIET)
    for split, left in lefts.items():
        _write(canvas, (left, HEADER_PX - 28), split, 17, INK)
        num_images = plural(len(dataset.splits[split]), "image")
        _write(canvas, (left + _length(split, 17) + 9, HEADER_PX - 27), num_images, 15, QUIET)


def _draw_label(canvas: ImageDraw.ImageDraw, name: str, counts: str, top: int) -> None:
    """Write the class's name in at most three lines and its counts below, centred beside the row."""
    lines = _wrapped(name, 18, LABEL_PX - 22)
    y = top + (TILE_PX - len(lines) * 23 - 22) // 2
    for line in lines:
        _write(canvas, (MARGIN_PX, y), line, 18, INK)
        y += 23
    _write(canvas, (MARGIN_PX, y + 2), _fitting(counts, 15, LABEL_PX - 22), 15, QUIET)


def _draw_bad(canvas: ImageDraw.ImageDraw, file_name: str, corner: tuple[int, int]) -> None:
    left, top = corner
    right, bottom = left + TILE_PX - 1, top + TILE_PX - 1
    canvas.rectangle((left, top, right, bottom), fill=BAD_PAPER, outline=BAD, width=2)
    centre_x, centre_y, arm = (left + right) // 2, top + 42, 15
    canvas.line((centre_x - arm, centre_y - arm, centre_x + arm, centre_y + arm), fill=BAD, width=5)
    canvas.line((centre_x - arm, centre_y + arm, centre_x + arm, centre_y - arm), fill=BAD, width=5)
    for text, text_px, y in (("bad file", 14, 68), (_fitting(file_name, 12, TILE_PX - 12), 12, 88)):
        _write(canvas, (centre_x - _length(text, text_px) // 2, top + y), text, text_px, BAD)


def _class_names(dataset: Dataset) -> list[str]:
    """Return the classes' original names; one that Pillow's font can't write gets its number too."""
    try:
        originals = json.loads((dataset.root / CLASS_NAMES_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        originals = {}
    originals = originals if isinstance(originals, dict) else {}
    names = []
    for label, folder_name in enumerate(dataset.classes):
        name = _writable(str(originals.get(folder_name, folder_name)))
        is_readable = any(character.isalnum() for character in name)
        names.append(name if "·" not in name else f"class {label}: {name}" if is_readable else f"class {label}")
    return names


def _write(canvas: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, text_px: int, colour: Colour) -> None:
    canvas.text(corner, _writable(text), fill=colour, font=_font(text_px))


def _length(text: str, text_px: int) -> int:
    return round(_font(text_px).getlength(_writable(text)))


def _wrapped(text: str, text_px: int, width_px: int, max_lines: int = 3) -> list[str]:
    """Break the text into lines of at most that width: after spaces, `_` and `-`, or within a word that is too long."""
    lines: list[str] = []
    rest = text.strip()
    while rest and len(lines) < max_lines - 1 and _length(rest, text_px) > width_px:
        end = next(end for end in range(len(rest) - 1, 0, -1) if _length(rest[:end], text_px) <= width_px or end == 1)
        breaks = [i + 1 for i in range(end) if rest[i] in " _-"]
        end = breaks[-1] if breaks and breaks[-1] > end // 3 else end
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*lines, _fitting(rest, text_px, width_px)]


def _fitting(text: str, text_px: int, width_px: int) -> str:
    """Return the text, cut with an ellipsis where it does not fit."""
    if _length(text, text_px) <= width_px:
        return text
    end = next((end for end in range(len(text), 0, -1) if _length(f"{text[:end]}…", text_px) <= width_px), 0)
    return f"{text[:end].rstrip()}…"


def _writable(text: str) -> str:
    """Return the text in characters of Pillow's own font: without accents it lacks, a middle dot for other letters."""
    return "".join(map(_writable_character, text))


def _writable_character(character: str) -> str:
    if character.isspace():
        return " "
    if _has_glyph(character):
        return character
    plain = unicodedata.normalize("NFKD", character)[0]
    return plain if plain != character and _has_glyph(plain) else "·"


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    mask, missing = (_font(16).getmask(shown) for shown in (character, "\uffff"))
    return (mask.size, bytes(mask)) != (missing.size, bytes(missing))


@lru_cache(maxsize=16)
def _font(text_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(text_px)
