"""A process that Ray ended for lack of memory costs its trial a retry, and not the job."""

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.air.execution.resources import FixedResourceManager
from ray.exceptions import OutOfMemoryError, RayActorError

from raysnap.tune.memory_kills import taken_as_deaths

SAID = (
    "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: 5ff3) was "
    "22.40GB used / 23.54GB limit (0.951462) OOM kill reason: Memory usage 24024035328B exceeded threshold of "
    "24012257280B. Top 10 memory users: PID MEM(GB) COMMAND 1 0.91 python secret.py"
)


def errors_of(exception: Exception) -> list[Exception]:
    """Return what Ray's own manager of actors calls back with when a task of an actor ends so."""
    errors: list[Exception] = []
    actor = TrackedActor("actor", on_error=lambda _, error: errors.append(error))
    manager = RayActorManager(FixedResourceManager({"CPU": 1}))
    manager._cleanup_actor = lambda tracked_actor: None
    manager._actor_task_failed(tracked_actor_task=TrackedActorTask(actor), exception=exception)
    return errors


def test_a_process_ended_for_lack_of_memory_is_one_that_died():
    with taken_as_deaths():
        [error] = errors_of(OutOfMemoryError(SAID))
    assert isinstance(error, RayActorError)
    assert str(error) == (
        "the machine ran out of memory (22.40GB of 23.54GB used), and Ray ended this process; "
        "lower resources.max_concurrent"
    )


def test_other_words_of_ray_are_one_sentence_too():
    with taken_as_deaths():
        [error] = errors_of(OutOfMemoryError("no room"))
    assert str(error).startswith("the machine ran out of memory, and Ray ended")


def test_other_errors_are_what_they_were():
    with taken_as_deaths():
        assert [str(error) for error in errors_of(RayActorError(error_msg="gone"))] == ["gone"]
        with pytest.raises(RuntimeError, match="unexpected"):
            errors_of(ValueError("anything"))


def test_without_it_tune_ends_the_experiment():
    """Where this fails, Ray has mended it: `taken_as_deaths` can go."""
    with pytest.raises(RuntimeError, match="Caught unexpected exception"):
        errors_of(OutOfMemoryError(SAID))
