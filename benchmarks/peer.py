"""Time whole searches side by side: this build's, those of Alsatian's own code, and those of another build of raysnap.

`benchmarks/peer.py [--peer CHECKOUT] [--packages DIR] [--against CHECKOUT] [--programs A,B] [--cached answers|features]
[--loaders N] [--repeats N] [--warmups N] [--architecture NAME] [--snapshots N] [--distribution NAME] [--base WEIGHTS]
[--store STORE] [--dataset TASK] [--image-size PX] [--train N] [--test N] [--dir DIR]`: every figure is of a process
from its start to its end. Programs take turns; before each turn what raysnap keeps beside a dataset is deleted, so that
every search decodes its images or tokenises its texts. `--cached answers` leaves all of it, `--cached features` all but
answers. What is measured is announced first, on stderr; the last line, on stdout, is one JSON document with medians
and, per turn, how many times as long as the first program each took.

Alsatian is github.com/hpides/alsatian, branch `reproducibility`, unchanged; `peer_process.py` runs it. With `--peer` it
makes the snapshots, which are imported block for block, and both systems read the same JPEGs. With `--architecture
hf/bert` both read the same texts, sentences of TASK up to `--image-size` tokens, with the same vocabulary. Alsatian's
BERT needs transformers 4 and torchinfo: `--packages` names a folder that `pip install --target` filled with them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from search import add_question, describe_items, describe_snapshots, device_name, facts, make_store, spread

from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import open_dataset
from raysnap.datasets.text.words import TASKS, vocabulary_of_words, words_tokenizer, write_text
from raysnap.models.block_facts import block_shapes
from raysnap.store.exchange.weights_in import import_snapshot
from raysnap.store.store import Store

HERE = Path(__file__).resolve().parent
PEER_APPROACHES = ("mosix", "shift", "baseline")
BERT = "hf/bert"
PEER_ARCHITECTURES = {"resnet18": "resnet18", BERT: "bert"}
PEER_CLASSES = ("neg", "pos")  # of its texts, in a folder that it knows by the word imdb
PEER_CACHE = "*/bert-base-uncased-cached"  # where it keeps the tokens of texts, beside them
MAX_TOKENS = 256  # it cuts longer texts
# What each program of raysnap adds to `raysnap search`; those of another build have `against_` before their name.
FLAGS = {
    "default": (),
    "alsatian": ("--method", "alsatian"),
    "alsatian_sgd": ("--method", "alsatian", "--proxy", "sgd_linear"),
    "shift_sgd": ("--method", "shift", "--proxy", "sgd_linear"),
    "baseline_sgd": ("--method", "baseline", "--proxy", "sgd_linear"),
    "shared": ("--method", "shared"),
    "nested": ("--method", "nested"),
}
PEER, AGAINST = "peer_", "against_"
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Program:
    """A command line that answers the question, and the folders that Python imports from first."""

    command: tuple[str, ...]
    imports: tuple[Path, ...]


@dataclass(frozen=True)
class Run:
    """What one process took, and what it answered."""

    wall_s: float
    cpu_s: float
    answer: Any


def main() -> None:
    """Announce what is measured, measure it, and print one JSON line."""
    options = parse_options()
    for line in (
        f"searches of {'Alsatian snapshots' if options.peer else describe_snapshots(options)}",
        f"  for {describe_items(options)}",
        f"  on {describe_processor()}",
        f"{', '.join(options.programs)}: {options.repeats} turns of whole processes, {options.warmups} warm-ups",
    ):
        say(line)
    with tempfile.TemporaryDirectory(prefix="bench_peer-") as temporary:
        folder = Path(options.dir or temporary).resolve()
        data = make_texts(options, folder) if options.architecture == BERT else make_data(options, folder)
        store = make_peer_store(options, folder) if options.peer else make_store(options, folder)
        runs = measure(options, data, plan(options, folder, store, data))
    figures = {
        **facts(options),
        "snapshots_made_by": "alsatian" if options.peer else "raysnap",
        "processor": describe_processor(),
        "torch": torch.__version__,
        "cached": options.cached,
        "programs": summarise(options, runs),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_question(parser, snapshots=16, image_size=224, train=320, test=80)
    parser.add_argument("--peer", type=Path, help="a checkout of Alsatian, branch reproducibility")
    parser.add_argument("--packages", type=Path, help="a folder of packages that only Alsatian imports")
    parser.add_argument("--against", type=Path, help="a checkout of another build of raysnap")
    parser.add_argument("--programs", help="a list with commas, the reference first; by default each side's default")
    parser.add_argument("--cached", choices=("features", "answers"), help="what to keep between turns, besides pixels")
    parser.add_argument("--loaders", type=int, default=0, help="processes that decode images for Alsatian")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--warmups", type=int, default=1, help="turns of raysnap's before these, not counted")
    options = parser.parse_args()
    known = list(FLAGS)
    known += [PEER + name for name in PEER_APPROACHES] if options.peer else []
    known += [AGAINST + name for name in FLAGS] if options.against else []
    if options.programs is None:
        options.programs = ",".join(name for name in ("default", "peer_mosix", "against_default") if name in known)
    options.programs = options.programs.split(",")
    if not set(options.programs) <= set(known):
        parser.error(f"--programs: expected some of {', '.join(known)}, found {', '.join(options.programs)}")
    if options.peer and (options.store or options.architecture not in PEER_ARCHITECTURES):
        parser.error(f"--peer: Alsatian makes the snapshots, {' or '.join(PEER_ARCHITECTURES)}; drop --store")
    if options.peer and options.architecture != BERT and options.image_size != 224:
        parser.error("--image-size: expected the 224 px for which Alsatian reads images")
    if options.architecture == BERT and not (options.peer and options.packages):
        parser.error(f"--architecture {BERT}: expected --peer, and --packages with its transformers")
    if options.architecture == BERT and not (options.dataset in TASKS and options.image_size <= MAX_TOKENS):
        parser.error(f"--architecture {BERT}: expected --dataset words-… and --image-size up to {MAX_TOKENS} tokens")
    if options.architecture == BERT and len(TASKS[options.dataset]) != len(PEER_CLASSES):
        parser.error(f"--dataset {options.dataset}: expected a task of two classes, as Alsatian knows of texts")
    return options


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"peer: {text}\n")


def describe_processor() -> str:
    """Name the processor, its number format, and what the environment takes from it."""
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    described = f"{device_name('cpu')}, {os.cpu_count()} CPUs, {torch.backends.cpu.get_cpu_capability()}, "
    return described + ("bfloat16" if has_bfloat16 else "no bfloat16") + "".join(f", {limit}" for limit in limits)


def make_data(options: argparse.Namespace, folder: Path) -> Path:
    """Return the folder of the target's images, of which train and val are the items; draw them where missing."""
    edge = options.image_size + options.image_size // 7
    shapes = ShapesConfig(image_size=edge, num_train=options.train, num_val=options.test, num_test=8)
    data_dir = folder / f"data-{options.image_size}-{options.train}-{options.test}"
    return open_dataset(options.dataset, data_dir, shapes).root


def make_texts(options: argparse.Namespace, folder: Path) -> Path:
    """Return the folder of the target's texts, of which train and val are the items; write them where missing."""
    root = folder / f"imdb-{options.dataset}-{options.image_size}-{options.train}-{options.test}"
    for split, num_texts in (("train", options.train), ("val", options.test)):
        for index in range(num_texts):
            path = root / split / PEER_CLASSES[index % len(PEER_CLASSES)] / f"{index:06d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(long_text(options.dataset, split, index, options.image_size))
    return root


def long_text(task: str, split: str, index: int, num_tokens: int) -> str:
    """Return sentences of one class of a task, in which each word is a token, up to a number of tokens."""
    words: list[str] = []
    for number in range(index * num_tokens, (index + 1) * num_tokens):
        _, sentence = write_text(task, split, index % 2 + 2 * number, seed=0)  # its two classes take turns
        if len(words) + len(sentence.split()) > num_tokens - 2:  # [CLS] and [SEP]
            break
        words += sentence.split()
    return " ".join(words) + "\n"


def make_vocabulary(folder: Path) -> None:
    """Write the tokens of the texts where Alsatian's transformers and an import look for them."""
    for place, name, content in (
        ("bert-base-uncased", "vocab.txt", "\n".join(vocabulary_of_words()).encode()),
        ("exported", "tokenizer.json", words_tokenizer()),
    ):
        (folder / place).mkdir(exist_ok=True)
        (folder / place / name).write_bytes(content)


def make_peer_store(options: argparse.Namespace, folder: Path) -> Path:
    """Let Alsatian make its snapshots and import them, in the order in which it made them."""
    store = folder / f"store-{PEER_ARCHITECTURES[options.architecture]}-{options.snapshots}"
    if not (store / "made").exists():
        if options.architecture == BERT:
            make_vocabulary(folder)
        exported = [Path(name) for name in run(peer_program(options, folder, "make"), folder).answer]
        opened = Store.open(store, create=True)
        for path in exported:
            import_snapshot(opened, path, options.architecture, name=path.stem)
            path.unlink()
        (store / "made").touch()
    say(f"{options.snapshots} snapshots in {sum(path.stat().st_size for path in store.rglob('objects/*/*')):,} bytes")
    return store


def peer_program(options: argparse.Namespace, folder: Path, task: str, data: Path | None = None) -> Program:
    """Return the command that runs Alsatian's code on a task."""
    command = (str(HERE / "peer_process.py"), str(options.peer.resolve()), task, "--dir", str(folder))
    command += ("--architecture", PEER_ARCHITECTURES[options.architecture])
    command += ("--snapshots", str(options.snapshots), "--loaders", str(options.loaders))
    imports = (options.packages.resolve(),) if options.packages else ()
    return Program(command + (("--data", str(data)) if data else ()), (*imports, options.peer.resolve()))


def plan(options: argparse.Namespace, folder: Path, store: Path, data: Path) -> dict[str, Program]:
    """Return each program by its name."""
    question = ("--data", str(data.resolve()), "--image-size", str(options.image_size))
    question += ("--num-train", str(options.train), "--num-test", str(options.test), "--json")
    sides = {False: (HERE.parent, store.resolve())}
    if options.against:
        sides[True] = (options.against.resolve(), link_store(store, folder / "against"))
    programs = {}
    for name in options.programs:
        if name.startswith(PEER):
            programs[name] = peer_program(options, folder, name.removeprefix(PEER), data)
        else:
            checkout, place = sides[name.startswith(AGAINST)]
            flags = FLAGS[name.removeprefix(AGAINST)]
            programs[name] = Program(("-m", "raysnap", "search", "--store", str(place), *question, *flags), (checkout,))
    return programs


def link_store(store: Path, copy: Path) -> Path:
    """Link a store's files to another place, where another build keeps an index of its own."""

    def link(source: str, to: str) -> None:
        try:
            os.link(source, to)
        except OSError:  # another file system
            shutil.copyfile(source, to)

    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(store, copy, copy_function=link, ignore=shutil.ignore_patterns("index.sqlite*"))
    return copy


def measure(options: argparse.Namespace, data: Path, programs: dict[str, Program]) -> dict[str, list[Run]]:
    """Run the programs in turns; warm-ups of raysnap's read the store into memory and aren't counted."""
    runs: dict[str, list[Run]] = {name: [] for name in programs}
    for turn in range(1 - options.warmups, options.repeats + 1):
        for name, program in programs.items():
            if turn < 1 and name.startswith(PEER):
                continue
            if options.cached != "answers":
                shutil.rmtree(data / ".raysnap" / ("answers" if options.cached else ""), ignore_errors=True)
            for kept in data.glob(PEER_CACHE):
                shutil.rmtree(kept)
            taken = run(program, data)
            if turn > 0:
                runs[name].append(taken)
            say(f"turn {turn}: {name} {taken.wall_s:.1f} s, {taken.cpu_s:.1f} s of CPU")
    return runs


def run(program: Program, folder: Path) -> Run:
    """Run a program to its end in a folder; raise SystemExit with its errors where it fails."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, program.imports))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # modules are compiled once, as where they are installed
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as output:
        started_s = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *program.command], stdout=output, stderr=errors, cwd=folder, env=environment
        )
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started_s
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"peer: {' '.join(program.command)}: {errors.read().decode()[-2000:]}")
        output.seek(0)
        return Run(wall_s, used.ru_utime + used.ru_stime, json.load(output))


def summarise(options: argparse.Namespace, runs: dict[str, list[Run]]) -> dict[str, dict[str, Any]]:
    """Summarise each program, and how many times as long as the first it took in the same turns."""
    model_flops = sum(shape.flops for shape in block_shapes(options.architecture, options.image_size)[:-1])
    reference = runs[options.programs[0]]
    figures = {}
    for name, found in runs.items():
        ratios = {
            key: [getattr(one, key) / getattr(other, key) for one, other in zip(found, reference, strict=True)]
            for key in ("wall_s", "cpu_s")
        }
        answer = found[-1].answer
        figures[name] = {
            "wall_s": statistics.median(one.wall_s for one in found),
            "spread": spread([one.wall_s for one in found]),
            "cpu_s": statistics.median(one.cpu_s for one in found),
            "times_as_long": statistics.median(ratios["wall_s"]),
            "times_the_cpu": statistics.median(ratios["cpu_s"]),
            **describe_answer(answer, model_flops),
        }
        say(
            f"{name}: {figures[name]['wall_s']:.1f} s, {figures[name]['cpu_s']:.1f} s of CPU; "
            f"{figures[name]['times_as_long']:.2f} and {figures[name]['times_the_cpu']:.2f} times {options.programs[0]}"
        )
    return figures


def describe_answer(answer: dict[str, Any], model_flops: int) -> dict[str, Any]:
    """Return the winner, the seconds that the program reports itself, and raysnap's work in images through a model."""
    if "end_to_end_s" in answer:
        return {"reported_s": answer["end_to_end_s"], "winner": answer["ranking"][0][1]}
    return {
        "reported_s": answer["timings_s"]["total"],
        "winner": answer["ranking"][0]["name"],
        "method": answer["method"],
        "precision": answer["precision"],
        "image_forwards": answer["work"]["flops"] / model_flops,
    }


if __name__ == "__main__":
    main()
