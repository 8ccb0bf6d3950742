"""What all tests share: a quiet, private Ray, started once and only where a test asks for it."""

import os
from collections.abc import Iterator

import hypothesis
import pytest

# Before anything imports ray, and for the processes that tests start: no token in the home folder, no reports.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)

# A shared machine stalls now and then; the time of one example says nothing.
hypothesis.settings.register_profile("raysnap", deadline=None)
hypothesis.settings.load_profile("raysnap")

OBJECT_STORE_BYTES = 200_000_000


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """The one Ray of this test run, with 2 CPUs on this machine; starting it takes about 10 s."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    yield
    ray.shutdown()
