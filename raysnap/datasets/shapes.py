"""The built-in `shapes` datasets: JPEG files drawn from a seed, offline, some tasks related and some not.

Every image shows one figure that varies in all factors (figure, texture, colour, orientation, position, size,
background and noise); a task's name says which factor decides the class. Tasks `-a` and `-b` of one factor share no
class, so features transfer between them while their heads have nothing in common.

All pixel arithmetic is on integers and all randomness comes from `random.Random.random`, so equal seeds give equal
bytes with equal versions of Pillow.
"""

from __future__ import annotations

import colorsys
import io
import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from PIL import Image, ImageDraw

from raysnap.config.parts import ShapesConfig
from raysnap.datasets.image_folder import new_folder
from raysnap.errors import DataError

DRAWING_VERSION = 1
SUPERSAMPLING = 4
JPEG_QUALITY = 90
LICENCE = "Drawn by raysnap; Apache-2.0 like raysnap itself."

Point = tuple[float, float]


@dataclass(frozen=True)
class Task:
    """One dataset of the family: the factor that decides the class and the classes with that factor's values."""

    factor: str
    classes: dict[str, Any]
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Look:
    """Everything that one image shows; lengths are fractions of the image's edge, angles are in degrees."""

    figure: str
    texture: str
    hue: float
    angle: float
    radius: float
    centre: Point
    texture_angle: float
    texture_period: float
    texture_phase: Point
    light_value: float
    dark_value: float
    saturation: float
    background_hue: float
    background_saturation: float
    background_values: tuple[float, float]
    noise_level: int


def _circle(num_points: int = 40, radius: float = 1.0, squeeze: float = 1.0, turn: float = 0.0) -> list[Point]:
    angles = [2 * math.pi * (k / num_points + turn) for k in range(num_points)]
    return [(radius * math.cos(a), radius * squeeze * math.sin(a)) for a in angles]


def _star(num_tips: int, inner: float) -> list[Point]:
    angles = [math.pi * k / num_tips for k in range(2 * num_tips)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip([1.0, inner] * num_tips, angles, strict=True)]


def _cross(arm: float) -> list[Point]:
    corners = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
    return corners + [(-x, -y) for x, y in corners]


def _rectangle(half_width: float, half_height: float) -> list[Point]:
    w, h = half_width, half_height
    return [(w, h), (-w, h), (-w, -h), (w, -h)]


# A figure is a list of outlines in the unit circle: the first is filled, the others are cut out of it.
FIGURES: dict[str, list[list[Point]]] = {
    "disc": [_circle()],
    "triangle": [_circle(3, turn=0.25)],
    "star": [_star(5, 0.42)],
    "ring": [_circle(), _circle(radius=0.55)],
    "hexagon": [_circle(6)],
    "sail": [[(-0.75, 0.9), (-0.75, -0.75), (0.9, -0.75)]],
    "cross": [_cross(0.33)],
    "frame": [_circle(4, turn=0.125), _circle(4, radius=0.55, turn=0.125)],
    "bar": [_rectangle(1.0, 0.38)],
    "ellipse": [_circle(squeeze=0.42)],
    "diamond": [[(1.0, 0), (0, 0.5), (-1.0, 0), (0, -0.5)]],
    "bone": [[(1, 0.55), (0.55, 0.2), (-0.55, 0.2), (-1, 0.55), (-1, -0.55), (-0.55, -0.2), (0.55, -0.2), (1, -0.55)]],
}


def _triangle_wave(phase: np.ndarray) -> np.ndarray:
    """Return the distance to the middle of the period: 0..512 for phases in 0..1023."""
    return np.abs((phase & 1023) - 512)


def _distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y).astype(np.int64)


def _edge(distance: np.ndarray) -> np.ndarray:
    """Return a soft step: 0 well below zero, 255 well above."""
    return np.clip(distance + 128, 0, 255)


# A texture maps two perpendicular phases (1024 units a period) to 0..255, the share of the light colour.
TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": lambda u, _: np.full_like(u, 255),
    "stripes": lambda u, _: _edge(_triangle_wave(u) - 256),
    "checks": lambda u, v: _edge(((_triangle_wave(u) - 256) * (_triangle_wave(v) - 256)) >> 7),
    "dots": lambda u, v: _edge((90_000 - _triangle_wave(u) ** 2 - _triangle_wave(v) ** 2) >> 8),
    "fade": lambda u, v: _triangle_wave((u + v) >> 3) >> 1,
    "zigzag": lambda u, v: _edge(_triangle_wave(u + _triangle_wave(v >> 1) * 2) - 256),
    "bricks": lambda u, v: _edge(400 - np.maximum(_triangle_wave(u), _triangle_wave((v >> 1) + ((u >> 10) & 1) * 512))),
    "bubbles": lambda u, v: _edge(120 - np.abs(_distance(_triangle_wave(u), _triangle_wave(v)) - 340)),
}

COLOURS: dict[str, float] = {
    "red": 0.0, "lime": 0.25, "cyan": 0.5, "violet": 0.75,
    "orange": 0.125, "mint": 0.375, "blue": 0.625, "magenta": 0.875,
}  # fmt: skip

_COMPACT = ("disc", "triangle", "star", "ring", "hexagon", "sail", "cross", "frame")
_FULL = ("disc", "triangle", "hexagon", "sail")

TASKS: dict[str, Task] = {
    "shapes-shape-a": Task("shape", {name: name for name in _COMPACT[:4]}, _COMPACT),
    "shapes-shape-b": Task("shape", {name: name for name in _COMPACT[4:]}, _COMPACT),
    "shapes-texture-a": Task("texture", {name: name for name in ("plain", "stripes", "checks", "dots")}, _FULL),
    "shapes-texture-b": Task("texture", {name: name for name in ("fade", "zigzag", "bricks", "bubbles")}, _FULL),
    "shapes-colour-a": Task("colour", dict(list(COLOURS.items())[:4]), _COMPACT),
    "shapes-colour-b": Task("colour", dict(list(COLOURS.items())[4:]), _COMPACT),
    "shapes-orientation-a": Task(
        "orientation", {f"{angle:03d}-degrees": angle for angle in (0, 45, 90, 135)}, ("bar", "ellipse")
    ),
    "shapes-orientation-b": Task(
        "orientation", {f"{angle:03d}-degrees": angle for angle in (22, 67, 112, 157)}, ("diamond", "bone")
    ),
}


def draw_task(name: str, directory: Path, config: ShapesConfig) -> None:
    """Draw the dataset `name` as the image folder `directory`, which appears whole or not at all.

    Raises:
        DataError: the folder can't be written, or there would be fewer than two training images of a class.
    """
    num_needed = 2 * len(TASKS[name].classes)
    if config.num_train < num_needed:
        raise DataError(
            f"shapes.num_train: expected at least {num_needed}, two per class of {name}, found {config.num_train}"
        )
    with new_folder(directory, drawing_record(name, config)) as folder:
        for split, num_images in (("train", config.num_train), ("val", config.num_val), ("test", config.num_test)):
            for index in range(num_images):
                class_name, content = draw_jpeg(name, split, index, config)
                folder.add_image(split, class_name, f"{index:06d}.jpg", content)


def drawing_record(name: str, config: ShapesConfig) -> dict[str, Any]:
    """Return what `dataset.json` says about a drawing, without counts and digest: enough to draw it again."""
    return {
        "name": name,
        "source": "drawn by raysnap",
        "licence": LICENCE,
        "drawing_version": DRAWING_VERSION,
        "drawing": config.model_dump(mode="json"),
    }


def drawing_digest(record: Mapping[str, Any]) -> str:
    """Return what tells one drawing from others, by its `dataset.json`: 8 characters."""
    facts = [record.get("drawing_version"), record.get("drawing")]
    return blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def draw_jpeg(name: str, split: str, index: int, config: ShapesConfig) -> tuple[str, bytes]:
    """Draw one image; return its class and its JPEG bytes. Classes take turns, so that every split is balanced."""
    task = TASKS[name]
    class_name = list(task.classes)[index % len(task.classes)]
    key = f"{config.seed}/{name}/{split}/{index}".encode()
    rng = random.Random(int.from_bytes(blake3(key).digest(16), "big"))
    look = sample_look(task, class_name, rng)
    buffer = io.BytesIO()
    draw_look(look, config.image_size, rng).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return class_name, buffer.getvalue()


def sample_look(task: Task, class_name: str, rng: random.Random) -> Look:
    """Draw a look at random in which the task's factor follows the class."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    def pick(names: tuple[str, ...]) -> str:
        return names[int(rng.random() * len(names))]

    drawn: dict[str, Any] = {
        "figure": pick(task.figures),
        "texture": pick(tuple(TEXTURES)),
        "hue": rng.random(),
        "angle": between(-35, 35),
    }
    value = task.classes[class_name]
    if task.factor == "shape":
        drawn["figure"] = value
    elif task.factor == "texture":
        drawn["texture"] = value
    elif task.factor == "colour":
        drawn["hue"] = (value + between(-0.035, 0.035)) % 1
    else:
        drawn["angle"] = value + between(-9, 9) + (180 if rng.random() < 0.5 else 0)
    radius = between(0.36, 0.47)
    slack = 0.5 - radius
    background_value = between(0.25, 0.75)
    return Look(
        **drawn,
        radius=radius,
        centre=(0.5 + between(-slack, slack), 0.5 + between(-slack, slack)),
        texture_angle=between(-35, 35),
        texture_period=between(0.19, 0.27),
        texture_phase=(rng.random(), rng.random()),
        light_value=between(0.8, 1.0),
        dark_value=between(0.1, 0.3) if task.factor == "texture" else between(0.35, 0.6),
        saturation=between(0.6, 1.0),
        background_hue=rng.random(),
        background_saturation=between(0.0, 0.6),
        background_values=(background_value, background_value + between(-0.2, 0.2)),
        noise_level=int(between(4, 14)),
    )


def draw_look(look: Look, image_size: int, rng: random.Random) -> Image.Image:
    """Draw the RGB image of a look; `rng` supplies the noise."""
    share = _texture_share(look, image_size)[..., None]
    light = _rgb(look.hue, look.saturation, look.light_value)
    dark = _rgb(look.hue, look.saturation, look.dark_value)
    figure = (light * share + dark * (255 - share)) // 255
    first, last = (_rgb(look.background_hue, look.background_saturation, v) for v in look.background_values)
    ramp = (np.arange(image_size) * 255 // image_size)[:, None, None]
    background = (last * ramp + first * (255 - ramp)) // 255
    mask = _figure_mask(look, image_size)[..., None]
    noise = np.frombuffer(rng.randbytes(image_size * image_size * 3), np.uint8).astype(np.int64)
    pixels = (figure * mask + background * (255 - mask)) // 255
    pixels += ((noise.reshape(pixels.shape) - 128) * look.noise_level) >> 7
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _figure_mask(look: Look, image_size: int) -> np.ndarray:
    """Return how much of each pixel the figure covers, 0..255 as int64 `[image_size, image_size]`."""
    edge = image_size * SUPERSAMPLING
    cos, sin = math.cos(math.radians(look.angle)), math.sin(math.radians(look.angle))
    scale = look.radius * edge
    centre_x, centre_y = look.centre[0] * edge, look.centre[1] * edge
    canvas = Image.new("L", (edge, edge))
    draw = ImageDraw.Draw(canvas)
    for fill, outline in zip((255, 0), FIGURES[look.figure], strict=False):
        corners = [
            (round(centre_x + scale * (x * cos - y * sin)), round(centre_y - scale * (x * sin + y * cos)))
            for x, y in outline
        ]
        draw.polygon(corners, fill=fill)
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.int64)


def _texture_share(look: Look, image_size: int) -> np.ndarray:
    """Return the share of the light colour in each pixel, 0..255 as int64 `[image_size, image_size]`."""
    period = look.texture_period * image_size
    cos = round(1024 / period * math.cos(math.radians(look.texture_angle)))
    sin = round(1024 / period * math.sin(math.radians(look.texture_angle)))
    x, y = _grid(image_size)
    x = x - round(look.centre[0] * image_size)
    y = y - round(look.centre[1] * image_size)
    phase_u, phase_v = (round(1024 * phase) for phase in look.texture_phase)
    return TEXTURES[look.texture](x * cos + y * sin + phase_u, y * cos - x * sin + phase_v)


@lru_cache(maxsize=4)
def _grid(image_size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:image_size, :image_size].astype(np.int64)
    return x, y


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array([round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, min(value, 1.0))])
