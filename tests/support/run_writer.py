"""A process that writes lines in a run directory while it is its only writer: `run_writer.py RUN_DIR BEAT_S STALE_S`.

It prints `held` once it may write, and appends its pid to RUN_DIR/lines every 10 ms until its stdin is closed. An error
is printed as the command line prints it, and decides the exit code.
"""

import sys
import threading
import time
from pathlib import Path

from raysnap.errors import RaysnapError
from raysnap.runs.run_lock import Pace, hold_run


def write(run_dir: Path, pace: Pace) -> None:
    over = threading.Event()

    def await_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=await_end, daemon=True).start()
    with hold_run(run_dir, pace) as lock:
        sys.stdout.write("held\n")
        sys.stdout.flush()
        while not over.is_set():
            lock.check()
            with (run_dir / "lines").open("a") as file:
                file.write(f"{lock._writer.pid}\n")
            time.sleep(0.01)


if __name__ == "__main__":
    try:
        write(Path(sys.argv[1]), Pace(float(sys.argv[2]), float(sys.argv[3])))
    except RaysnapError as error:
        sys.stderr.write(f"raysnap: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
