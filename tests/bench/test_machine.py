"""What a measurement stood on: load from counters, peak memory from the kernel, facts under one key."""

import numpy as np
import pytest

from raysnap.bench.machine import Load, MemoryStart, Moment, describe_machine, machine_key


def moment(all_cpus_s=0.0, busy_cpus_s=0.0, steal_s=0.0, own_cpu_s=0.0) -> Moment:
    return Moment(all_cpus_s, busy_cpus_s, steal_s, own_cpu_s, read_bytes=0)


def test_load_is_split_into_own_other_and_stolen_time():
    load = moment(1.0, 0.5, 0.1, 0.2).load_until(moment(21.0, 14.5, 2.1, 10.2))
    assert load == Load(
        own_cpu_s=10.0, own_cpu_share=0.5, other_cpu_share=0.2, steal_share=0.1, other_cpu_s=4.0, steal_s=2.0
    )
    assert load.noise == ["other processes took 20 % of the CPUs", "the hypervisor took 10 % of the CPUs"]


@pytest.mark.parametrize(
    "load",
    [
        Load(19.5, 0.2, 0.2, 0.975, 0.01, 0.01),
        Load(0.3, 0.04, 0.0, 0.75, 0.1, 0.0),  # ticks of a short run
    ],
)
def test_a_quiet_machine_is_no_noise(load):
    assert load.noise == []


def test_a_load_that_nobody_knows_is_noise():
    load = moment(own_cpu_s=1.0).load_until(moment(own_cpu_s=3.0))
    assert load == Load(2.0)
    assert "it is unknown what else used the CPUs" in load.noise[0]


def test_own_work_counts_as_own():
    before = Moment.now()
    total = 0.0
    while Moment.now().own_cpu_s - before.own_cpu_s < 0.2:
        total += np.linalg.norm(np.ones((100, 100)))
    load = before.load_until(Moment.now())
    assert load.own_cpu_s >= 0.2
    assert 0 < load.own_cpu_share <= 1.1
    assert load.other_cpu_share >= 0


def test_peak_memory_is_counted_from_the_start_of_the_search():
    old = np.ones(200 * 2**20, dtype=np.uint8)
    del old
    start = MemoryStart.now()
    new = np.ones(50 * 2**20, dtype=np.uint8)
    del new
    grown = start.peak()["peak_rss_bytes"] - start.rss_bytes
    assert 48 * 2**20 <= grown < 150 * 2**20  # the kernel counts pages per CPU and is some out


def test_a_machine_goes_by_its_facts():
    facts = describe_machine()
    assert {"hostname", "cpu", "memory_bytes", "gpus", "torch", "commit"} <= facts.keys()
    assert machine_key(facts) == machine_key(dict(reversed(facts.items())))
    assert machine_key(facts) != machine_key(facts | {"commit": "another"})
