"""Facts about an architecture without torch: the same as with it, measured once per version."""

import json
import subprocess
import sys

import pytest
from blake3 import blake3

from raysnap.errors import ArchitectureError
from raysnap.models import block_facts
from raysnap.models.blocks import block_names, measure_blocks


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()
    yield tmp_path / "raysnap" / "block_facts"
    forget()


def forget() -> None:
    functions = (
        block_facts.num_body_blocks,
        block_facts.block_shapes,
        block_facts.weights_files,
        block_facts._versions,
    )
    for function in functions:
        function.cache_clear()


@pytest.mark.parametrize("architecture", ["resnet18", "efficientnet_b0", "swin_t"])
def test_cached_facts_equal_measured_ones(cache_dir, architecture):
    for _ in range(2):
        assert block_facts.num_body_blocks(architecture) == len(block_names(architecture)) - 2
        assert block_facts.block_shapes(architecture, 64) == measure_blocks(architecture, 64)
        forget()
    assert len(list(cache_dir.rglob("*.json"))) == 2


def test_cached_facts_need_no_torch(cache_dir):
    block_facts.block_shapes("resnet18", 64)
    block_facts.weights_files("resnet18")
    code = (
        "import sys; from raysnap.models.block_facts import block_shapes, weights_files\n"
        "print(len(block_shapes('resnet18', 64)), weights_files('resnet18')['ResNet18_Weights.DEFAULT'])\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["10", "resnet18-f37072fd.pth"]


@pytest.mark.parametrize("content", [b"", b"[{", b"\xff"])
def test_a_damaged_file_is_written_again(cache_dir, content):
    expected = block_facts.block_shapes("resnet18", 64)
    (path,) = cache_dir.rglob("*.json")
    path.write_bytes(content)
    forget()
    assert block_facts.block_shapes("resnet18", 64) == expected
    assert len(json.loads(path.read_bytes())) == 10


def test_facts_are_known_without_a_writable_cache(cache_dir):
    cache_dir.parent.write_text("a file where the folder would be")
    assert block_facts.num_body_blocks("resnet18") == 8


@pytest.mark.parametrize("name", ["resnet19", "../../resnet18", "", "resnet18/x"])
def test_unknown_architectures_leave_no_file(cache_dir, name):
    with pytest.raises(ArchitectureError):
        block_facts.num_body_blocks(name)
    with pytest.raises(ArchitectureError):
        block_facts.block_shapes(name, 64)
    assert not list(cache_dir.rglob("*.json"))


def test_another_version_of_the_facts_measures_again(cache_dir, monkeypatch):
    block_facts.num_body_blocks("resnet18")
    monkeypatch.setattr(block_facts, "FACTS_VERSION", block_facts.FACTS_VERSION + 1)
    forget()
    block_facts.num_body_blocks("resnet18")
    assert len(list(cache_dir.rglob("*.json"))) == 2


def test_the_version_names_these_facts():
    """If this fails because blocks are cut or measured otherwise on purpose, increase FACTS_VERSION with the digest."""
    shapes = [
        (shape.name, shape.output_shape, shape.num_parameter_bytes)  # FLOPs are torch's to count
        for architecture in ("resnet18", "mobilenet_v3_small", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t")
        for shape in measure_blocks(architecture, 224)
    ]
    digest = blake3(json.dumps(shapes).encode()).hexdigest()[:16]
    assert (block_facts.FACTS_VERSION, digest) == (3, "3b9940fd3dbccec0")
