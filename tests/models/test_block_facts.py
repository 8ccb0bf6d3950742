"""What is known of an architecture without torch: the same as with it, found out once."""

import json
import subprocess
import sys

import pytest

from raysnap.errors import ArchitectureError
from raysnap.models import block_facts as anatomy
from raysnap.models.blocks import block_names, measure_blocks


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for function in (anatomy.num_body_blocks, anatomy.block_shapes, anatomy.weights_files):
        function.cache_clear()
    yield tmp_path / "raysnap" / "anatomy"
    for function in (anatomy.num_body_blocks, anatomy.block_shapes, anatomy.weights_files):
        function.cache_clear()


def forget() -> None:
    anatomy.num_body_blocks.cache_clear()
    anatomy.block_shapes.cache_clear()


@pytest.mark.parametrize("architecture", ["resnet18", "efficientnet_b0", "swin_t"])
def test_what_is_remembered_is_what_was_measured(cache_dir, architecture):
    for _ in range(2):
        assert anatomy.num_body_blocks(architecture) == len(block_names(architecture)) - 2
        assert anatomy.block_shapes(architecture, 64) == measure_blocks(architecture, 64)
        forget()
    assert len(list(cache_dir.rglob("*.json"))) == 2


def test_a_second_look_needs_no_torch(cache_dir):
    anatomy.block_shapes("resnet18", 64)
    anatomy.weights_files("resnet18")
    code = (
        "import sys; from raysnap.models.block_facts import block_shapes, weights_files\n"
        "print(len(block_shapes('resnet18', 64)), weights_files('resnet18')['ResNet18_Weights.DEFAULT'])\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["10", "resnet18-f37072fd.pth"]


@pytest.mark.parametrize("content", [b"", b"[{", b"\xff"])
def test_a_torn_file_is_made_anew(cache_dir, content):
    expected = anatomy.block_shapes("resnet18", 64)
    (path,) = cache_dir.rglob("*.json")
    path.write_bytes(content)
    forget()
    assert anatomy.block_shapes("resnet18", 64) == expected
    assert len(json.loads(path.read_bytes())) == 10


def test_a_cache_that_can_not_be_written_is_done_without(cache_dir):
    cache_dir.parent.write_text("a file where the folder would be")
    assert anatomy.num_body_blocks("resnet18") == 8


@pytest.mark.parametrize("name", ["resnet19", "../../resnet18", "", "resnet18/x"])
def test_an_unknown_architecture_is_refused_and_leaves_no_file(cache_dir, name):
    with pytest.raises(ArchitectureError):
        anatomy.num_body_blocks(name)
    with pytest.raises(ArchitectureError):
        anatomy.block_shapes(name, 64)
    assert not list(cache_dir.rglob("*.json"))
