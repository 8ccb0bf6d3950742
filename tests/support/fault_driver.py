"""`raysnap ARGUMENTS` with a fault planted in the driver: `fault_driver.py FAULT LOG ARGUMENTS`.

Each epoch that Tune hears of is a line of LOG. The fault is one of FAULTS; what is random about it follows from the
environment's FAULT_SEED.
"""

import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from raysnap.cli.app import main
from raysnap.runs.run_directory import RunDirectory
from raysnap.tune import run_trials as trainer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_actors_start(rng: random.Random) -> None:
    fit = trainer.tune.Tuner.fit

    def fit_and_die(tuner: Any) -> Any:
        threading.Timer(rng.uniform(0, 3), die).start()
        return fit(tuner)

    trainer.tune.Tuner.fit = fit_and_die


def at_a_later_epoch(rng: random.Random, act: Any) -> None:
    tell, num_left = trainer._DriverCallback.on_trial_result, rng.randint(2, 5)

    def tell_and_act(*args: Any, **info: Any) -> None:
        nonlocal num_left
        tell(*args, **info)
        num_left -= 1
        if num_left == 0:
            act()

    trainer._DriverCallback.on_trial_result = tell_and_act


def around_the_first_row(*, after: bool) -> None:
    add_row = RunDirectory.add_row

    def add_row_and_die(run: RunDirectory, row: dict) -> None:
        if after:
            add_row(run, row)
        die()

    RunDirectory.add_row = add_row_and_die


FAULTS = {
    "none": lambda rng: None,
    "killed while actors start": die_while_actors_start,
    "killed midway": lambda rng: at_a_later_epoch(rng, die),
    "SIGTERM": lambda rng: at_a_later_epoch(rng, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "SIGINT": lambda rng: at_a_later_epoch(rng, lambda: os.kill(os.getpid(), signal.SIGINT)),
    "killed before a row": lambda rng: around_the_first_row(after=False),
    "killed after a row": lambda rng: around_the_first_row(after=True),
}


def log_epochs(log_path: Path) -> None:
    tell = trainer._DriverCallback.on_trial_result

    def tell_and_log(*args: Any, **info: Any) -> None:
        if "epoch" in info["result"]:
            with log_path.open("a") as log:
                log.write(f"{info['trial'].config['trial']['id']} {info['result']['epoch']}\n")
        tell(*args, **info)

    trainer._DriverCallback.on_trial_result = tell_and_log


if __name__ == "__main__":
    log_epochs(Path(sys.argv[2]))
    FAULTS[sys.argv[1]](random.Random(os.environ["FAULT_SEED"]))
    sys.exit(main(sys.argv[3:]))
