"""The command line: reads arguments, calls one function, prints its result; the only file that prints or starts Ray.

torch and ray are imported inside the commands, so that `raysnap --help` stays fast. Results go to stdout, everything
else to stderr.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysnap.choices import Method, Proxy
from raysnap.errors import RaysnapError, StoreDamaged, UsageError, describe_failure
from raysnap.progress import show_progress

if TYPE_CHECKING:
    from raysnap.config import GenerateConfig, JobConfig
    from raysnap.generate import OnProgress

app = typer.Typer(
    name="raysnap",
    help="Fine-tune a population of image models on Ray, keep every shared block once, search for the best start.",
    epilog="Exit codes: 0 done; 1 done, but some trials or candidates failed; 2 bad usage, config or input; 3 damaged "
    "store; 130 interrupted. --debug, anywhere on the line, shows the traceback of an error.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Datasets: list, prepare, check.")
store_app = typer.Typer(help="The model store: look, add, export, verify, clean up.")
app.add_typer(data_app, name="data")
app.add_typer(store_app, name="store")

SOME_FAILED = 1
INTERRUPTED = 130
OBJECT_STORE_BYTES = 256 * 2**20

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys of the file: train.epochs=3.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout and nothing else.")]
Resume = Annotated[bool, typer.Option("--resume", help="Finish what an earlier run left, repeat nothing finished.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and write nothing.")]
DataDir = Annotated[Path, typer.Option("--data-dir", help="Folder of the named datasets.")]
StoreDir = Annotated[Path, typer.Option("--store", help="Folder of the model store.")]


def main(argv: list[str] | None = None) -> int:
    """The exit code of the command line `argv` (that of the process when None); every error becomes one line."""
    given = list(sys.argv[1:] if argv is None else argv)
    is_debugging = "--debug" in given
    arguments = [argument for argument in given if argument != "--debug"] or ["--help"]
    logging.basicConfig(level=logging.WARNING, format="raysnap: %(message)s", stream=sys.stderr)
    try:
        exit_code = app(args=arguments, prog_name="raysnap", standalone_mode=False) or 0
        if exit_code == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
        return exit_code
    except (KeyboardInterrupt, typer.Abort):
        print(f"raysnap: interrupted{_how_to_resume(arguments)}", file=sys.stderr)
        return INTERRUPTED
    except RaysnapError as error:
        if is_debugging:
            traceback.print_exc()
        print(f"raysnap: {error}", file=sys.stderr)
        return error.exit_code
    except typer.Exit as end:
        return end.exit_code
    except Exception as error:  # noqa: BLE001 - the end of the line: what nobody foresaw is told in one, too
        if is_debugging:
            traceback.print_exc()
        is_usage = hasattr(error, "format_message")  # a mistake in the command line, as typer found it
        told = _usage_mistake(error) if is_usage else f"unexpected {describe_failure(error)}; run again with --debug"
        print(f"raysnap: {told}", file=sys.stderr)
        return UsageError.exit_code


def _usage_mistake(error: Any) -> str:
    told = error.format_message().replace("Value error, ", "").replace("Input should be ", "expected ")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "raysnap"
    return f"{told.removesuffix('.')}{' ' if told.endswith('?') else '; '}`{command} --help` says more"


def _how_to_resume(arguments: list[str]) -> str:
    if arguments[0] not in ("quickstart", "generate", "bench"):
        return ""
    needs_flag = arguments[0] != "quickstart" and "--resume" not in arguments
    return f"; finish it with: {shlex.join(['raysnap', *arguments, *(['--resume'] if needs_flag else [])])}"


@app.command()
def quickstart(
    overrides: Overrides = None,
    directory: Annotated[Path, typer.Option("--dir", help="Folder for everything it makes.")] = Path("quickstart"),
    as_json: AsJson = False,
) -> int:
    """Run the whole job on built-in data, offline, in two minutes.

    A base, snapshots on several datasets, a store, timed searches and a report; what an earlier run in the same
    folder finished is not repeated.
    """
    from raysnap.config import QuickstartConfig, find_config, load_config

    config = load_config(find_config("quickstart"), overrides or [], QuickstartConfig).inside(directory)
    from raysnap.generate import plan_generate

    plan_generate(config.generate)
    with _job_session(config.generate, resume=True) as on_progress:
        from raysnap.quickstart import quickstart as run

        summary = run(config, resume=True, on_progress=on_progress)
    if as_json:
        _print_json(summary)
    else:
        from raysnap.store import Store
        from raysnap.tables import methods_table, ranking_table, savings_line

        stats = Store.open(Path(summary.store)).stats()
        _print_failures(summary.generated.failures + summary.benched.failures)
        if summary.searches:
            search = summary.searches[-1]
            _print(f"\nWhich snapshot is the best start for {search['dataset']}?  (method {search['method']})\n")
            _print(ranking_table(search, max_rows=5))
            _print("\nThe same question, timed\n")
            _print(methods_table(summary.searches))
        _print(f"\n{savings_line(stats)}\nReport: {summary.report}")
    return SOME_FAILED if summary.num_failed else 0


@app.command()
def generate(
    config_path: ConfigPath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> int:
    """Fine-tune a population of snapshots into a store."""
    from raysnap.config import GenerateConfig, load_config

    config = load_config(config_path, overrides or [], GenerateConfig)
    if dry_run:
        return _show_generate_plan(config, as_json)
    from raysnap.generate import generate as run
    from raysnap.generate import plan_generate
    from raysnap.report import write_report

    plan_generate(config)
    with _job_session(config, resume=resume) as on_progress:
        summary = run(config, resume=resume, on_progress=on_progress)
    report_path = write_report(config.run_dir)
    if as_json:
        _print_json(summary)
    else:
        from raysnap.store import Store
        from raysnap.tables import savings_line

        _print_failures(summary.failures)
        _print(f"{summary.num_done} of {summary.num_trials} trials done, {summary.num_failed} failed.")
        _print(f"{savings_line(Store.open(config.store).stats())}\nReport: {report_path}")
    return SOME_FAILED if summary.num_failed else 0


def _show_generate_plan(config: GenerateConfig, as_json: bool) -> int:
    from raysnap.generate import plan_generate

    plan = plan_generate(config)
    trials = [*plan.bases, *plan.trials]
    if as_json:
        num_trials = sum(1 for trial in trials if trial.dataset)
        shown = [trial.model_dump(mode="json") for trial in trials]
        _print_json({"run_dir": str(config.run_dir), "num_trials": num_trials, "trials": shown})
    else:
        from raysnap.quantities import plural
        from raysnap.tables import trials_table

        _print(trials_table(trials))
        missing = [name for name, folder in plan.datasets.items() if folder is None]
        _print(f"\n{plural(len(plan.trials), 'fine-tune')} and {plural(len(plan.bases), 'base')}; nothing was written.")
        if missing:
            _print(f"Drawn first: {', '.join(missing)}")
    return 0


@app.command()
def search(
    data: Annotated[str, typer.Option("--data", help="A dataset's name, or the path of an ImageFolder.")],
    store_dir: StoreDir = Path("store"),
    data_dir: DataDir = Path("data"),
    method: Annotated[Method, typer.Option("--method", help="Who is tried on how many items.")] = "alsatian",
    proxy: Annotated[Proxy, typer.Option("--proxy", help="The score that stands for fine-tuned accuracy.")] = "linear",
    num_train: Annotated[int | None, typer.Option("--num-train", min=1, help="Train items to probe on.")] = None,
    num_test: Annotated[int | None, typer.Option("--num-test", min=1, help="Items to score on.")] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=16, help="Edge in pixels; each snapshot's own when not given.")
    ] = None,
    budget_bytes: Annotated[
        int | None, typer.Option("--budget", min=1, help="Bound on the activations held, in bytes.")
    ] = None,
    where: Annotated[str | None, typer.Option("--where", help='Which snapshots: "accuracy > 0.8".')] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the items and the probes.")] = 0,
    as_json: AsJson = False,
) -> int:
    """Rank a store's snapshots as starts for a dataset."""
    from raysnap.search import search as run

    result = run(
        store_dir,
        data,
        method=method,
        proxy=proxy,
        num_train=num_train,
        num_test=num_test,
        image_size=image_size,
        budget_bytes=budget_bytes,
        where=where,
        seed=seed,
        data_dir=data_dir,
    )
    if as_json:
        _print_json(result)
    else:
        from raysnap.quantities import plural
        from raysnap.tables import ranking_table, timings_line

        _print(ranking_table(result.to_dict()))
        num_candidates = plural(result.num_candidates, "candidate")
        _print(f"\n{num_candidates} by {result.method}, {timings_line(result.timings_s)}")
        _print_failures([{"snapshot": one.name, "error": one.error} for one in result.skipped])
    return SOME_FAILED if result.skipped else 0


@app.command()
def bench(config_path: ConfigPath, overrides: Overrides = None, resume: Resume = False, as_json: AsJson = False) -> int:
    """Time searches against each other, each alone on its GPU or machine."""
    from raysnap.config import BenchConfig, load_config

    config = load_config(config_path, overrides or [], BenchConfig)
    from raysnap.bench import bench as run
    from raysnap.bench import plan_bench
    from raysnap.report import write_report

    plan_bench(config)
    with _job_session(config, resume=resume) as on_progress:
        summary = run(config, resume=resume, on_progress=on_progress)
    report_path = write_report(config.run_dir)
    if as_json:
        _print_json(summary)
    else:
        from raysnap.tables import methods_table

        _print_failures(summary.failures)
        _print(methods_table(summary.searches))
        _print(f"\nReport: {report_path}")
    return SOME_FAILED if summary.num_failed else 0


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out_path: Annotated[
        Path | None, typer.Option("--out", help="File to write; RUN_DIR/report.html by default.")
    ] = None,
) -> int:
    """Write a run's report: one self-contained HTML file."""
    from raysnap.report import write_report

    _print(str(write_report(run_dir, out_path)))
    return 0


@app.command("config")
def show_config(config_path: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> int:
    """Print the resolved configuration, which reruns the job."""
    from raysnap.config import dump_yaml, load_any_config

    config = load_any_config(config_path, overrides or [])
    if as_json:
        _print_json(config.model_dump(mode="json"))
    else:
        sys.stdout.write(dump_yaml(config))
    return 0


@app.command()
def doctor(as_json: AsJson = False) -> int:
    """Say what this machine has, and what would fail on it."""
    from raysnap.doctor import examine

    findings = examine(Path.cwd())
    problems = [finding for finding in findings if finding.problem]
    if as_json:
        _print_json({"ok": not problems, "findings": [asdict(finding) for finding in findings]})
    else:
        from raysnap.tables import findings_table

        _print(findings_table(findings))
        _print("" if problems else "\nNothing would fail.")
    return SOME_FAILED if problems else 0


@data_app.command("ls")
def data_ls(data_dir: DataDir = Path("data"), as_json: AsJson = False) -> int:
    """List the datasets known by name or found, and where each can be had."""
    from raysnap.inventory import list_datasets

    summaries = list_datasets(data_dir)
    if as_json:
        _print_json({"datasets": [asdict(summary) for summary in summaries]})
    else:
        from raysnap.tables import datasets_table

        _print(datasets_table(summaries))
    return 0


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A dataset's name: `raysnap data ls`.")],
    source: Annotated[Path | None, typer.Option("--source", help="The official files, or a folder of them.")] = None,
    data_dir: DataDir = Path("data"),
    as_json: AsJson = False,
) -> int:
    """Turn official files into an ImageFolder under the data folder."""
    from raysnap.converters import prepare_dataset

    result = prepare_dataset(name, source, data_dir)
    if as_json:
        _print_json(
            {"dataset": name, "counts": result.counts, "num_classes": result.num_classes, "num_bad": result.num_bad}
        )
    else:
        from raysnap.tables import dataset_line

        _print(dataset_line(result.dataset.root, result.num_classes, result.counts))
        _print_failures([{"error": f"{result.num_bad} images could not be read"}] if result.num_bad else [])
    return 0


@data_app.command("check")
def data_check(
    path: Annotated[str, typer.Argument(metavar="PATH", help="An ImageFolder, or a dataset's name.")],
    data_dir: DataDir = Path("data"),
    as_json: AsJson = False,
) -> int:
    """Look at every image of a dataset: counts, broken files, duplicates across splits and classes."""
    from raysnap.inventory import check_dataset

    result = check_dataset(path, data_dir)
    if as_json:
        _print_json(asdict(result) | {"ok": result.is_sound})
    else:
        from raysnap.tables import dataset_line

        totals = {split: sum(by_class.values()) for split, by_class in result.counts.items()}
        _print(dataset_line(result.root, len(result.classes), totals, result.num_ignored))
        _print_failures([{"error": reason} for _, reason in result.bad])
        same = [", ".join(str(image.relative_to(result.root)) for image in group) for group in result.duplicates]
        _print_failures([{"where": str(result.root), "error": f"the same bytes in {group}"} for group in same])
    return 0 if result.is_sound else SOME_FAILED


@store_app.command("ls")
def store_ls(
    store_dir: StoreDir = Path("store"),
    where: Annotated[str | None, typer.Option("--where", help='Which snapshots: "retrain_index <= 2".')] = None,
    as_json: AsJson = False,
) -> int:
    """List snapshots."""
    from raysnap.store import Store

    summaries = Store.open(store_dir).summaries(where)
    if as_json:
        _print_json({"snapshots": [summary._asdict() for summary in summaries]})
    else:
        from raysnap.tables import snapshots_table

        _print(snapshots_table(summaries))
    return 0


SnapshotName = Annotated[str, typer.Argument(metavar="ID", help="A snapshot's name, id, or the beginning of its id.")]


@store_app.command("show")
def store_show(snapshot: SnapshotName, store_dir: StoreDir = Path("store"), as_json: AsJson = False) -> int:
    """Show one snapshot's manifest, and who else holds each of its blocks."""
    from raysnap.store import Store

    store = Store.open(store_dir)
    manifest = store.manifest(snapshot)
    names = store.names_of(manifest.id)
    if as_json:
        _print_json(manifest.model_dump(mode="json") | {"names": names})
    else:
        from raysnap.tables import blocks_table, manifest_table

        holders = store.snapshots_with([block.digest for block in manifest.blocks])
        _print(manifest_table(manifest, names))
        _print("")
        _print(blocks_table(manifest, {digest: len(found) - 1 for digest, found in holders.items()}))
    return 0


@store_app.command("add")
def store_add(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors or .pth state dict.")],
    architecture: Annotated[str, typer.Option("--arch", help="torchvision's builder name.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the snapshot.")] = None,
    store_dir: StoreDir = Path("store"),
    as_json: AsJson = False,
) -> int:
    """Add a torchvision state dict as a snapshot."""
    from raysnap.manifest import check_ref_name
    from raysnap.store import Store
    from raysnap.weights import add_file, read_blocks

    read_blocks(path, architecture)  # a file that doesn't fit shall not leave a new store behind
    if name is not None:
        check_ref_name(name)
    written = add_file(Store.open(store_dir, create=True), path, architecture, name=name)
    if as_json:
        _print_json({"snapshot": written.manifest.id, "new_blocks": written.new_blocks, "new_bytes": written.new_bytes})
    else:
        from raysnap.quantities import bytes_text, plural

        new = plural(written.new_blocks, "new block")
        _print(f"{written.manifest.id}: {new}, {bytes_text(written.new_bytes)} written")
    return 0


@store_app.command("export")
def store_export(
    snapshot: SnapshotName,
    to: Annotated[Path, typer.Option("--to", help="A .safetensors or .pth file.")],
    store_dir: StoreDir = Path("store"),
    as_json: AsJson = False,
) -> int:
    """Write a snapshot as a plain torchvision state dict, with a model card beside it."""
    from raysnap.store import Store
    from raysnap.weights import export_snapshot

    export = export_snapshot(Store.open(store_dir), snapshot, to)
    if as_json:
        _print_json(asdict(export))
    else:
        _print(f"{export.weights_path} and {export.card_path}")
    return 0


@store_app.command("diff")
def store_diff(
    first: SnapshotName, second: SnapshotName, store_dir: StoreDir = Path("store"), as_json: AsJson = False
) -> int:
    """Say in which blocks two snapshots differ."""
    from raysnap.store import Store

    store = Store.open(store_dir)
    digests = [{block.name: block.digest for block in store.manifest(one).blocks} for one in (first, second)]
    names = list(dict.fromkeys([*digests[0], *digests[1]]))
    rows = [(name, digests[0].get(name), digests[1].get(name)) for name in names]
    if as_json:
        _print_json({"blocks": [{"name": n, "first": a, "second": b, "equal": a == b} for n, a, b in rows]})
    else:
        from raysnap.tables import differences_table

        _print(differences_table(first, second, rows))
    return 0


@store_app.command("verify")
def store_verify(store_dir: StoreDir = Path("store"), as_json: AsJson = False) -> int:
    """Read every byte of the store and name what is damaged."""
    from raysnap.store import Store

    result = Store.open(store_dir).verify()
    if as_json:
        _print_json(result)
    else:
        from raysnap.tables import damage_rows, verify_line

        _print(verify_line(result))
        _print_failures(damage_rows(result))
    return 0 if result["ok"] else StoreDamaged.exit_code


@store_app.command("gc")
def store_gc(
    store_dir: StoreDir = Path("store"),
    grace_s: Annotated[float, typer.Option("--grace", min=0, help="Spare what is younger, in seconds.")] = 3600.0,
    as_json: AsJson = False,
) -> int:
    """Delete the blocks that no snapshot needs."""
    from raysnap.store import Store

    result = Store.open(store_dir).gc(grace_s)
    if as_json:
        _print_json(result)
    else:
        from raysnap.tables import gc_line

        _print(gc_line(result))
    return 0


@store_app.command("stats")
def store_stats(store_dir: StoreDir = Path("store"), as_json: AsJson = False) -> int:
    """Count snapshots, blocks and bytes, and what copies would take."""
    from raysnap.store import Store

    stats = Store.open(store_dir).stats()
    if as_json:
        _print_json(stats)
    else:
        from raysnap.tables import savings_line

        _print(savings_line(stats))
    return 0


@contextmanager
def _job_session(config: JobConfig, *, resume: bool) -> Iterator[OnProgress]:
    """A progress display and a Ray for a job whose run_dir is fit for it; RAY_ADDRESS names a cluster to use.

    What Ray and its libraries print on stdout goes to stderr meanwhile.
    """
    from raysnap.runs import check_run_dir

    check_run_dir(config, config.run_dir, resume=resume)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_AIR_NEW_OUTPUT", "RAY_ENABLE_UV_RUN_RUNTIME_ENV"):
        os.environ.setdefault(name, "0")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        import ray

        is_ours = not ray.is_initialized()
        if is_ours:
            address = os.environ.get("RAY_ADDRESS")
            own = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        try:
            with show_progress() as on_progress:
                yield on_progress
        finally:
            if is_ours:
                ray.shutdown()
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def _print(shown: Any) -> None:
    """Prints text or a rich table on stdout; in a pipe, lines are not cut at a terminal's width."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 200
    console = Console(file=sys.stdout, width=width, highlight=False, soft_wrap=isinstance(shown, str), markup=False)
    with console.capture() as captured:
        console.print(shown)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _print_failures(failures: list[dict[str, str]]) -> None:
    for failure in failures:
        print(f"raysnap: {': '.join(str(value) for value in failure.values())}", file=sys.stderr)


def _print_json(document: Any) -> None:
    if is_dataclass(document) and not isinstance(document, type):
        document = asdict(document)
    sys.stdout.write(json.dumps(_finite(document), indent=2, allow_nan=False, default=str) + "\n")


def _finite(value: Any) -> Any:
    """The document with NaN and infinity as null, which JSON can say."""
    if isinstance(value, dict):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
