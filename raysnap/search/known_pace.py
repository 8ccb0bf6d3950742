"""Keep how fast this device is for later searches: what calibrations and earlier searches measured, in a file.

There is a file for each device, number format, number of threads and version of torch, in the user's cache folder.
Where it is missing, damaged or can't be written, a search calibrates anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from raysnap.atomic import write_atomically
from raysnap.errors import RaysnapError
from raysnap.models.numerics import Numerics
from raysnap.search.engine.pace import Laps
from raysnap.search.plan.costs import BlockSpeed, Kind, shape_of_kind
from raysnap.search.plan.forecast import DevicePace
from raysnap.system import cpu_name, user_cache_dir

FORMAT = 2
# What one search teaches is halved in effect, on the scale of factors, as the machine may have been busy.
TRUST = 0.5
LARGEST_CORRECTION = 8.0
# Stages that take less than this say nothing about the pace: what is done once, whatever the work, counts too much.
SHORTEST_S = 0.1
# A file is written again when something in it is new or changes by more than this.
NOTICEABLE = 0.1


def read_pace(numerics: Numerics) -> DevicePace:
    """Return what is known of the device that this computes on."""
    pace = DevicePace(numerics.device.type, numerics.num_streams)
    with suppress(OSError, ValueError, TypeError, KeyError):
        facts = json.loads(_path(numerics).read_bytes())
        speeds = {
            (str(architecture), int(image_size), int(index)): BlockSpeed(float(call_s), float(item_s))
            for architecture, image_size, index, call_s, item_s in facts["speeds"]
        }
        speeds = {kind: speed for kind, speed in speeds.items() if _can_be_run(kind)}
        corrections = {str(stage): float(factor) for stage, factor in facts["corrections"].items()}
        return replace(pace, speeds=speeds, corrections=corrections)
    return pace


def write_pace(numerics: Numerics, pace: DevicePace) -> None:
    """Write what is known now, unless that hardly changed; a cache that can't be written costs time, nothing else."""
    if not _differs(read_pace(numerics), pace):
        return
    speeds = [[*kind, speed.call_s, speed.item_s] for kind, speed in sorted(pace.speeds.items())]
    with suppress(OSError):
        path = _path(numerics)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"speeds": speeds, "corrections": dict(pace.corrections)}))


def learn_speeds(pace: DevicePace, laps: Mapping[Kind, Laps]) -> DevicePace:
    """Return the pace after these laps of blocks: a kind's two times change by the same factor."""
    speeds = dict(pace.speeds)
    for kind, lap in laps.items():
        usual = BlockSpeed(pace.rates.call_s, shape_of_kind(kind).flops / pace.rates.flops_per_s)
        speed = speeds.get(kind, usual)
        expected_s = lap.num_batches * speed.call_s + lap.num_items * speed.item_s
        if expected_s > 0 and lap.total_s > 0:
            speeds[kind] = speed.times((lap.total_s / expected_s) ** (TRUST if kind in speeds else 1.0))
    return replace(pace, speeds=speeds)


def learn_corrections(pace: DevicePace, usual_s: Mapping[str, float], took_s: Mapping[str, float]) -> DevicePace:
    """Return the pace after stages, or proxies by name, that took other seconds than the usual rates have them take."""
    corrections = dict(pace.corrections)
    for stage, expected_s in usual_s.items():
        if min(expected_s, took_s[stage]) > SHORTEST_S:
            found = min(LARGEST_CORRECTION, max(1 / LARGEST_CORRECTION, took_s[stage] / expected_s))
            corrections[stage] = corrections.get(stage, found) ** (1 - TRUST) * found**TRUST
    return replace(pace, corrections=corrections)


def _can_be_run(kind: Kind) -> bool:
    """Return whether the block can be built here: another version or environment may have measured it."""
    try:
        shape_of_kind(kind)
    except (RaysnapError, IndexError):
        return False
    return True


def _differs(before: DevicePace, after: DevicePace) -> bool:
    if before.speeds.keys() != after.speeds.keys() or before.corrections.keys() != after.corrections.keys():
        return True
    pairs = [(before.corrections[stage], factor) for stage, factor in after.corrections.items()]
    pairs += [(before.speeds[kind].item_s, speed.item_s) for kind, speed in after.speeds.items()]
    return any(not math.isclose(old, new, rel_tol=NOTICEABLE) for old, new in pairs)


def _path(numerics: Numerics) -> Path:
    """Return the file of a device: its name is a digest of all that paces depend on, apart from the block."""
    facts = f"{FORMAT}\n{numerics.fingerprint}\n{cpu_name()}\n{numerics.num_streams}\n{numerics.deterministic}"
    return user_cache_dir() / "pace" / f"{blake3(facts.encode()).hexdigest()[:32]}.json"
