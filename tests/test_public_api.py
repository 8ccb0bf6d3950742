"""The public API: `raysnap.__all__` says what it is, every name is documented, and importing raysnap stays cheap."""

import subprocess
import sys

import pytest

import raysnap


@pytest.mark.parametrize("name", raysnap.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(raysnap, name) is not None


def test_nothing_else_is_offered():
    assert dir(raysnap) == sorted(raysnap.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        raysnap.nonsense  # noqa: B018 - the access is the test


def test_importing_raysnap_imports_neither_torch_nor_ray():
    code = "import sys, raysnap; raysnap.ConfigError; print(sorted({'torch', 'ray', 'pydantic'} & sys.modules.keys()))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_search_is_imported_with_torch_only_when_it_is_used():
    code = (
        "import sys, raysnap, raysnap.search; assert 'torch' not in sys.modules; "
        "from raysnap.search import search; assert search is raysnap.rank_snapshots and 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_unknown_names_of_the_configuration_package_are_refused():
    import raysnap.config

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        raysnap.config.nonsense  # noqa: B018 - the access is the test
    assert raysnap.config.GenerateConfig is raysnap.GenerateConfig
