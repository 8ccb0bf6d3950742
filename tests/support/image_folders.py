"""Small image folders for tests."""

from collections import Counter
from pathlib import Path

from PIL import Image


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    """Make an image folder with so many images in each `split/class`."""
    for folder, num_images in counts.items():
        (root / folder).mkdir(parents=True)
        for index in range(num_images):
            Image.new("RGB", (8, 8), (index * 7 % 256, 90, 30)).save(root / folder / f"{index:03d}.png")
    return root


def num_per_class(items) -> dict[int, int]:
    """Return the number of items of each label."""
    return dict(Counter(item.label for item in items))
