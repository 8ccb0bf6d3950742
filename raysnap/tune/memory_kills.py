"""A process that Ray ended because the machine ran out of memory is one that died: it costs its trial a retry.

Ray's memory monitor raises an error of its own for such a process. Tune (ray 2.60.0) expects none but that of a dead
actor and of a failed task: it ends the whole experiment with a RuntimeError, see
`findings/ray_tune_memory_monitor.sh`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

FAILED = "_actor_task_failed"  # Ray has no hook for it

_USED = re.compile(r"([\d.]+ ?[KMGT]i?B) used / ([\d.]+ ?[KMGT]i?B) limit")


@contextmanager
def taken_as_deaths() -> Iterator[None]:
    """Have Tune treat processes that Ray's memory monitor ended as processes that died."""
    original = getattr(RayActorManager, FAILED)

    def take(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=_message(str(exception)))
        original(manager, tracked_actor_task=tracked_actor_task, exception=exception)

    setattr(RayActorManager, FAILED, take)
    try:
        yield
    finally:
        setattr(RayActorManager, FAILED, original)


def _message(text: str) -> str:
    """Return in a sentence what Ray says in thousands of characters, most of them other processes' commands."""
    used = _USED.search(text)
    amounts = f" ({used[1]} of {used[2]} used)" if used else ""
    return f"the machine ran out of memory{amounts}, and Ray ended this process; lower resources.max_concurrent"
