"""Any sequence of commands, kills among them, on every place that raysnap has."""

from collections.abc import Callable

import pytest

from raysnap.testing.places import NewPlace
from raysnap.testing.store_machine import run_store_machine
from tests.support.places import NUMBERS, NewFolder, in_memory
from tests.support.s3_server import new_places_of, s3_server
from tests.support.store_laws import IS_DEEP, disk_folder, part

NUM_RUNS, NUM_STEPS = (part(2_000), 100) if IS_DEEP else (30, 30)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0 if IS_DEEP else 170)]


def run(make_place: Callable[[], NewPlace], num_runs: int) -> None:
    run_store_machine(make_place, num_runs, NUM_STEPS, derandomize=not IS_DEEP)


def test_a_bucket_in_memory_holds_what_a_dict_would():
    run(in_memory, NUM_RUNS)


def test_a_folder_holds_what_a_dict_would():
    with disk_folder() as folder:
        run(lambda: NewFolder(folder / f"store-{next(NUMBERS)}"), NUM_RUNS // 3)


def test_a_bucket_of_a_server_holds_what_a_dict_would(monkeypatch):
    with s3_server() as address:
        run(new_places_of(address, monkeypatch), NUM_RUNS // 10)
