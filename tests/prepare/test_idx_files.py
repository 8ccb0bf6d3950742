"""IDX files are read whole or refused."""

import gzip

import numpy as np
import pytest

from raysnap.errors import DataError
from raysnap.prepare.idx_files import IDX_IMAGES_MAGIC, read_idx
from tests.support.official_sources import idx_bytes


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_array_is_read_as_it_was_written(is_packed):
    array = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    content = gzip.compress(idx_bytes(array)) if is_packed else idx_bytes(array)
    assert np.array_equal(read_idx(content, "images", IDX_IMAGES_MAGIC), array)


@pytest.mark.parametrize("cut", [5, 200, -4])
def test_a_torn_gzip_file_is_refused(cut):
    noise = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    with pytest.raises(DataError, match=r"images\.gz: "):
        read_idx(gzip.compress(idx_bytes(noise))[:cut], "images.gz", IDX_IMAGES_MAGIC)
