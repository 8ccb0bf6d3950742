"""A store for each family of architectures, the items that its snapshots are ranked on, and what a ranking says."""

from pathlib import Path

from raysnap.config.parts import ShapesConfig
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from tests.support.search_stores import put, random_blocks

DATA = "shapes-colour-a"
SHAPES = ShapesConfig(image_size=32, num_train=8, num_val=4, num_test=4)
NUM_ITEMS = 12
SIZES = {"resnet18": 32, "efficientnet_b0": 32, "vit_b_32": 224}  # torchvision's transformers take no other


def family_store(architecture: str, directory: Path) -> Store:
    """Return a new store of one snapshot, and of two with last blocks of their own."""
    store = Store.open(directory / "store", create=True)
    preprocessing = Preprocessing(resize_size=SIZES[architecture], image_size=SIZES[architecture])
    base = random_blocks.__wrapped__(architecture, 0)
    for retrained in range(3):
        cut = len(base) - 1 - retrained
        own = [(name, {key: _shifted(value, retrained) for key, value in block.items()}) for name, block in base[cut:]]
        put(store, f"r{retrained}", [*base[:cut], *own], architecture, preprocessing=preprocessing)
    return store


def _shifted(value, times):
    return value + 0.01 * times if value.is_floating_point() else value


def lines(result):
    return [(one.snapshot, one.score, one.num_train, one.num_test, one.tied_with_best) for one in result.ranking]
