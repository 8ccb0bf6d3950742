"""Switch off the protections of files one at a time, and find out whether the tests notice.

Each mutant is a copy of the package with one line changed, the tests that must fail for it, and words of the failure
that show they fail for this reason: see `tools/mutations/`. A line per mutant, one JSON line last; exit code 1 where a
mutant survives. `tools/mutants.py NAME …` tries only the mutants whose names hold one of the words, with
`RAYSNAP_JOBS` processes at once, two unless it says otherwise.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.mutations import datasets, files, formats, models, places, search, store  # noqa: E402
from tools.mutations.mutant import Mutant  # noqa: E402

NUM_JOBS = int(os.environ.get("RAYSNAP_JOBS", "2"))
FOLDERS = ("raysnap", "tests", "configs", "scripts", "benchmarks", "tools", "docs")
FAILED = 1  # pytest's exit code for tests that failed, and not for its own trouble
LAWS = "raysnap/testing/store_laws.py"  # whose tests classes of other files inherit

MUTANTS: list[Mutant] = [
    mutant for part in (store, places, formats, files, models, datasets, search) for mutant in part.MUTANTS
]


def copy_project(target: Path) -> None:
    """Copy what the tests need into a folder where it may be changed."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for path in (path for path in ROOT.iterdir() if path.is_file()):
        shutil.copy(path, target)


def run_tests(project: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Run tests on the package of this folder, up to the first that fails."""
    paths = [f"tests/{test}" for test in tests]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *paths]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAYSNAP_")}
    environment |= {"PYTHONPATH": str(project)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a copy is used for many mutants
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def misfit(mutant: Mutant) -> str | None:
    """Return why this mutant can't be tried on the code as it is; None if it can."""
    path, (test_file, _, test) = ROOT / "raysnap" / mutant.file, mutant.test.partition("::")
    if not path.is_file():
        return f"expected a file {path.relative_to(ROOT)}, found none"
    if (count := path.read_text().count(mutant.old)) != 1:
        return f"{mutant.file}: expected the line {mutant.old!r} once, found it {count} times"
    test_path, name = ROOT / "tests" / test_file, test.partition("[")[0]
    text = test_path.read_text() if test_path.is_file() else ""
    owner, _, name = name.rpartition("::")
    if owner and f"class {owner}(" in text:
        text = (ROOT / LAWS).read_text()
    if f"def {name}(" not in text:
        return f"tests/{test_file}: expected a test {name}, found none"
    return None


@contextmanager
def mutated(project: Path, mutant: Mutant) -> Iterator[None]:
    """Change the mutant's line in a copy of the project until the block ends."""
    path = project / "raysnap" / mutant.file
    sound = path.read_text()
    try:
        _write(path, sound.replace(mutant.old, mutant.new))
        yield
    finally:
        _write(path, sound)


def _write(path: Path, text: str) -> None:
    """Write a module, and forget what was compiled of it: two of one length and second would look the same."""
    path.write_text(text)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


def try_mutant(mutant: Mutant, project: Path) -> str:
    """Return `caught`, or what happened instead, in a sound copy of the project, which is sound again afterwards."""
    if fault := misfit(mutant):
        return f"no mutant: {fault}"
    with mutated(project, mutant):
        ended = run_tests(project, [mutant.test])
    if ended.returncode == 0:
        return "survived"
    if ended.returncode != FAILED:
        return f"no verdict: pytest ended with {ended.returncode}: {ended.stdout[-400:]}{ended.stderr[-400:]}"
    if not re.search(mutant.reason, ended.stdout):
        return f"failed for another reason than {mutant.reason!r}: {ended.stdout[-1500:]}"
    return "caught"


def main(words: list[str]) -> int:
    """Try the mutants after making sure that the tests pass without them."""
    started = time.perf_counter()
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    projects: Queue[Path] = Queue()

    def in_a_copy(mutant: Mutant) -> str:
        project = projects.get()
        try:
            return try_mutant(mutant, project)
        finally:
            projects.put(project)

    survived = []
    with ExitStack() as copies:
        for _ in range(NUM_JOBS):
            projects.put(Path(copies.enter_context(TemporaryDirectory(prefix="raysnap-mutant-"))))
            copy_project(projects.queue[-1])
        sound = run_tests(projects.queue[0], sorted({mutant.test for mutant in chosen}))
        if sound.returncode:
            sys.stdout.write(f"the tests fail without any mutant:\n{sound.stdout[-3000:]}")
            return FAILED
        with ThreadPoolExecutor(NUM_JOBS) as pool:
            for mutant, verdict in zip(chosen, pool.map(in_a_copy, chosen), strict=True):
                sys.stdout.write(f"{mutant.name}: {verdict}\n")
                sys.stdout.flush()
                survived += [mutant.name] if verdict != "caught" else []
    result = {
        "num_mutants": len(chosen),
        "num_caught": len(chosen) - len(survived),
        "survived": survived,
        "wall_s": round(time.perf_counter() - started, 1),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return FAILED if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
