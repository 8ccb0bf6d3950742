"""Any sequence of commands, kills among them, on every place that raysnap has."""

import pytest

from raysnap.testing.store_machine import run_store_machine
from tests.support.places import NUMBERS, NewFolder, in_memory
from tests.support.s3_server import new_places_of, s3_server
from tests.support.store_laws import IS_DEEP, disk_folder, part

NUM_RUNS, NUM_STEPS = (part(2_000), 100) if IS_DEEP else (30, 30)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0 if IS_DEEP else 170)]


def test_a_bucket_in_memory_holds_what_a_dict_would():
    run_store_machine(in_memory, NUM_RUNS, NUM_STEPS, derandomize=not IS_DEEP)


def test_a_folder_holds_what_a_dict_would():
    with disk_folder() as folder:
        run_store_machine(
            lambda: NewFolder(folder / f"store-{next(NUMBERS)}"), NUM_RUNS // 3, NUM_STEPS, derandomize=not IS_DEEP
        )


def test_a_bucket_of_a_server_holds_what_a_dict_would(monkeypatch):
    with s3_server() as address:
        run_store_machine(new_places_of(address, monkeypatch), NUM_RUNS // 10, NUM_STEPS, derandomize=not IS_DEEP)
