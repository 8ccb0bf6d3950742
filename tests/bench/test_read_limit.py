"""The read limit, on a clock of its own: what readers wait adds up to the rate, whatever they do in between."""

import pytest

from raysnap.bench import read_limit
from raysnap.bench.read_limit import ReadLimit

RATE = 200 * 2**20
PIECE = 2**20


class Clock:
    """Time that passes only in sleeps, each a little too long, and where a test says so."""

    def __init__(self, overshoot_s: float = 0.0):
        self.now_s, self.overshoot_s = 100.0, overshoot_s

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, wait_s: float) -> None:
        if wait_s > 0:
            self.now_s += wait_s + self.overshoot_s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock(overshoot_s=0.0002)
    monkeypatch.setattr(read_limit, "time", clock)
    return clock


def read(limit: ReadLimit, clock: Clock, num_bytes: int) -> float:
    """Seconds that a file takes whose pieces come from the disk and are hashed in half a millisecond each."""
    asked_s = clock.now_s
    for start in range(0, num_bytes, PIECE):
        clock.now_s += 0.0005
        limit.wait(min(PIECE, num_bytes - start), asked_s)
    return clock.now_s - asked_s


@pytest.mark.parametrize("num_bytes", [300_000, 5 * PIECE, 100 * PIECE + 17])
def test_a_file_takes_its_bytes_over_the_rate(clock, num_bytes):
    took_s = read(ReadLimit(RATE), clock, num_bytes)
    assert num_bytes / RATE <= took_s <= num_bytes / RATE + 0.001


def test_long_sleeps_are_made_up_for_but_not_pauses(clock):
    limit, num_files = ReadLimit(RATE), 50
    took_s = 0.0
    for _ in range(num_files):
        took_s += read(limit, clock, PIECE)
        clock.now_s += 1.0
    assert num_files * PIECE / RATE <= took_s <= num_files * PIECE / RATE + 2 * clock.overshoot_s


def test_readers_at_one_time_share_the_rate(clock):
    limit = ReadLimit(RATE)
    asked_s = clock.now_s
    for _ in range(10):
        limit.wait(PIECE, asked_s)
        limit.wait(PIECE, asked_s)
    assert clock.now_s - asked_s == pytest.approx(20 * PIECE / RATE, rel=0.01)


def test_a_reader_slower_than_the_rate_never_waits(clock, monkeypatch):
    limit, waits = ReadLimit(RATE), []
    monkeypatch.setattr(clock, "sleep", waits.append)
    asked_s = clock.now_s
    for _ in range(10):
        clock.now_s += 2 * PIECE / RATE
        limit.wait(PIECE, asked_s)
    assert waits == []
