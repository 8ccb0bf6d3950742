"""A session of Ray: what is checked before it starts, and how SIGTERM ends it."""

import signal

import pytest

from raysnap.cluster.session import check_resources, interrupted_by_sigterm
from raysnap.config.parts import ResourcesConfig
from raysnap.errors import ConfigError


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"cpus": 3}, "resources.cpus: expected at most the 2 CPUs of this machine, found 1 x 3"),
        ({"num_workers": 3}, "resources.cpus: expected at most the 2 CPUs of this machine, found 3 x 1"),
        ({"gpus": 0.5}, "resources.gpus: expected at most the 0 GPUs of this machine, found 1 x 0.5"),
    ],
)
def test_resources_that_this_machine_lacks_are_refused(asked, message):
    check_resources(ResourcesConfig(num_workers=2), {"CPU": 2.0})
    with pytest.raises(ConfigError, match=message):
        check_resources(ResourcesConfig(**asked), {"CPU": 2.0})


def test_sigterm_interrupts_and_its_handler_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupted_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
