"""Waits that speak: what nothing can give is refused, and whoever waits for resources says for which."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import ray
from ray._raylet import GcsClient

from raysnap.cluster.capacity import Bundle, Capacity, bundle_text, read_capacity
from raysnap.errors import ClusterError
from raysnap.humanize import plural, seconds_text

JOIN_S = 20.0  # that nodes are given to join a cluster of which no node types are known
SAY_AFTER_S = 10.0
SAY_AGAIN_S = 300.0
POLL_S = 2.0

logger = logging.getLogger(__name__)


def refuse_impossible(what: str, bundle: Bundle, num_bundles: int = 1) -> Capacity:
    """Return the cluster's capacity, which has room for so many bundles at once, now or when further nodes have come.

    Where nothing is known of further nodes, some seconds are given them to join.

    Args:
        what: what needs the bundles, such as `each trial`.

    Raises:
        ClusterError: nothing that runs or may come has room.
    """
    give_up_s = time.monotonic() + JOIN_S
    while True:
        capacity = read_capacity()
        if capacity.slots(bundle) >= num_bundles:
            return capacity
        is_alone = len(capacity.nodes) == 1 and not os.environ.get("RAY_ADDRESS")
        if capacity.types or is_alone or time.monotonic() > give_up_s:
            raise ClusterError(_refusal(what, bundle, num_bundles, capacity))
        time.sleep(POLL_S / 4)


def _refusal(what: str, bundle: Bundle, num_bundles: int, capacity: Capacity) -> str:
    times = "" if num_bundles == 1 else f"{num_bundles} x "
    room = f"room for {capacity.slots_now(bundle)} on {plural(len(capacity.nodes), 'running node')}"
    shapes = [(kind, bundle_text(_shape(kind.resources))) for kind in capacity.types]
    types = ", ".join(f"{kind.name} ({shape}, at most {kind.most})" for kind, shape in shapes)
    further = f"node types that bring too little: {types}" if types else "no node types that may bring more"
    return (
        f"{what} needs {times}{bundle_text(bundle)}, each on one node: found {room}, and {further}; ask for less "
        "(resources.gpus, resources.cpus, resources.num_workers, --workers) or add nodes that have it"
    )


def _shape(resources: Bundle) -> Bundle:
    return {name: amount for name, amount in resources.items() if name in ("CPU", "GPU")}


@contextmanager
def told_waits(what: str, wanted: Callable[[], Sequence[Bundle]]) -> Iterator[None]:
    """Log within the block, first after some seconds and then rarely, that Ray has no room for what is wanted.

    Args:
        what: what waits, such as `a trial`.
        wanted: returns what is asked of Ray and may be waited for; nothing while waiting is no surprise.
    """
    is_over = threading.Event()
    thread = threading.Thread(target=_watch, args=(what, wanted, is_over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _watch(what: str, wanted: Callable[[], Sequence[Bundle]], is_over: threading.Event) -> None:
    since_s, say_s, is_said = None, 0.0, False
    while not is_over.wait(POLL_S):
        now_s = time.monotonic()
        try:
            bundle = _first_pending(wanted())
            capacity = read_capacity() if bundle is not None and since_s is not None and now_s >= say_s else None
        except (RuntimeError, ray.exceptions.RayError):  # a GCS that is busy, or gone: whoever waits for it says so
            continue
        if bundle is None:
            if is_said and since_s is not None:
                logger.warning("%s waits no more, after %s", what, seconds_text(now_s - since_s))
            since_s, is_said = None, False
        elif since_s is None:
            since_s, say_s = now_s, now_s + SAY_AFTER_S - POLL_S
        elif capacity is not None:
            logger.warning("%s", describe_wait(what, bundle, capacity))
            say_s, is_said = now_s + SAY_AGAIN_S, True


def describe_wait(what: str, bundle: Bundle, capacity: Capacity) -> str:
    """Return in one line what is waited for and what could end the wait."""
    num_slots, coming, running = capacity.slots_now(bundle), capacity.coming(bundle), capacity.num_running
    has = f"the {num_slots} that the running nodes have room for are in use" if num_slots else "no running node has it"
    hopes = [f"{kind.name} may start ({running[kind.name]} of {kind.most} are up)" for kind in coming]
    if not hopes:
        hopes = [] if num_slots else ["nothing is known to bring it; add nodes, or stop the job and ask for less"]
    return "; ".join([f"waiting for {bundle_text(bundle)} for {what}: {has}", *hopes])


def _first_pending(wanted: Sequence[Bundle]) -> Bundle | None:
    """Return the first bundle that a task, an actor or a group of processes waits for on this cluster."""
    if not wanted:
        return None
    pending = pending_bundles()
    return next((bundle for bundle in wanted if any(_is_same(bundle, shape) for shape in pending)), None)


def pending_bundles() -> list[Bundle]:
    """Return what tasks, actors and groups of processes of all jobs on this cluster wait for."""
    gcs: GcsClient = ray._private.worker.global_worker.gcs_client  # type: ignore[attr-defined] # set when it connects
    usage = gcs.get_all_resource_usage().resource_usage_data
    shapes: list[Bundle] = [dict(demand.shape) for demand in usage.resource_load_by_shape.resource_demands]
    groups = usage.placement_group_load.placement_group_data
    return shapes + [dict(part.unit_resources) for group in groups for part in group.bundles]


def _is_same(wanted: Bundle, shape: Bundle) -> bool:
    return all(abs(shape.get(name, 0.0) - wanted.get(name, 0.0)) < 1e-3 for name in wanted.keys() | shape.keys())
