"""`raysnap finetune`, `recommend` and `predict`: from a dataset to a model, and what that says of images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysnap.cli.console import (
    SOME_FAILED,
    AsJson,
    DataDir,
    DryRun,
    Overrides,
    Resume,
    StoreDir,
    any_path,
    duration,
    kept_path,
    print_failures,
    print_json,
    print_message,
    print_result,
)
from raysnap.cli.job_session import shown_ray_session
from raysnap.cli.search_arguments import Data, Where
from raysnap.cluster.session import OBJECT_STORE_BYTES, WORKER_OBJECT_BYTES, interrupted_by_sigterm
from raysnap.config.choices import Preset
from raysnap.errors import UsageError
from raysnap.progress import show_progress

if TYPE_CHECKING:
    from raysnap.config.sweep import FinetuneConfig

MAX_LIMIT = 1_000_000


def finetune(
    data: Data,
    overrides: Overrides = None,
    store_dir: StoreDir = Path("store"),
    data_dir: DataDir = Path("data"),
    preset: Annotated[Preset, typer.Option("--preset", help="How much is tried: recipes, starts and epochs.")] = "good",
    starts: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="SNAPSHOT", help="Start from this snapshot, without a search; may be repeated."),
    ] = None,
    shortlist: Annotated[
        int | None,
        typer.Option("--shortlist", metavar="N", min=1, help="Fine-tune the N best starts; by default by --preset."),
    ] = None,
    time_budget_s: Annotated[
        float | None,
        typer.Option(
            "--time-budget",
            metavar="TIME",
            parser=duration,
            help="Time for search and training together, such as 20m; the search takes a quarter at most.",
        ),
    ] = None,
    where: Where = None,
    config_path: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE.yaml", parser=any_path, help="Further keys, such as `space`."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir", metavar="DIR", parser=kept_path, help="Folder of the records; default: runs/finetune-DATASET."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the model; default: DATASET-finetuned.")
    ] = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> int:
    """Make a model for a dataset: search the store, fine-tune the best starts, keep the best model, report.

    The starts are searched for among the store's snapshots, and the best few are fine-tuned by several recipes; most
    are stopped early (ASHA). The best model is stored under a name; the report shows what the search predicted beside
    what came.
    """
    given = {
        "dataset": data,
        "store": str(store_dir),
        "data_dir": str(data_dir),
        "preset": preset,
        "starts": starts or None,
        "shortlist": shortlist,
        "time_budget_s": time_budget_s,
        "run_dir": str(run_dir) if run_dir else None,
        "name": name,
    }
    config = _read_config(given, where, config_path, overrides or [])
    check_question(config)
    if dry_run:
        return _show_plan(config, as_json)
    from raysnap.runs.run_directory import lock_run

    with interrupted_by_sigterm(), lock_run(config, config.run_dir, resume=resume) as lock, show_progress() as show:
        show("search/libraries", 0, 1, "")
        from raysnap.jobs.finetune import choose_starts
        from raysnap.jobs.finetune import finetune as run

        show("search/libraries", 1, 1, "")

        num_workers = config.search.workers
        if num_workers == 1:  # the search needs no Ray, and is over before it starts
            choose_starts(config, resume=resume, lock=lock, on_progress=show)
        worker_bytes = num_workers * WORKER_OBJECT_BYTES if num_workers > 1 else 0
        with shown_ray_session(OBJECT_STORE_BYTES + worker_bytes, config.resources, show, [config.store]):
            summary = run(config, resume=True, lock=lock, on_progress=show)
    from raysnap.report.page import write_report

    report_path = write_report(config.run_dir)
    if as_json:
        print_json(asdict(summary) | {"report": str(report_path)})
    else:
        from raysnap.cli.finetuning.tables import outcome_lines, starts_table

        print_failures(summary.failures)
        print_result(starts_table(summary))
        print_result(f"\n{outcome_lines(summary, config)}\nReport: {report_path}")
    return SOME_FAILED if summary.num_failed or summary.best is None else 0


def _read_config(
    given: dict[str, Any], where: str | None, config_path: Path | None, overrides: list[str]
) -> FinetuneConfig:
    """Return the job that options, a file and overrides ask for; the later win."""
    from raysnap.config.load import validate
    from raysnap.config.sweep import FinetuneConfig
    from raysnap.config.yaml_files import apply_overrides, read_yaml
    from raysnap.training.trial import slug

    document = {key: value for key, value in given.items() if value is not None}
    document.setdefault("run_dir", f"runs/finetune-{slug(str(given['dataset']))}")
    document["search"] = {"feature_cache_bytes": 2**30} | ({"where": where} if where else {})
    if config_path is not None:
        read = read_yaml(config_path)
        search = document["search"] | (read.get("search") or {})
        document = document | read | {"search": search}
    document = apply_overrides(document, overrides)
    return validate(document, FinetuneConfig, where=str(config_path or "finetune"))


def check_question(config: FinetuneConfig) -> None:
    """Check that the store, the starts and the dataset are there, before torch is imported.

    Raises:
        RaysnapError: one of them is missing or damaged.
    """
    from raysnap.search.candidates import check_names

    check_names(config.store, config.dataset, config.data_dir, config.shapes, config.search.where)
    if config.starts:
        from raysnap.store.store import Store

        store = Store.open(config.store)
        for start in config.starts:
            store.resolve(start)


def _show_plan(config: FinetuneConfig, as_json: bool) -> int:
    """Print what the job would search, train and need; write nothing."""
    from raysnap.cli.finetuning.plan import plan_finetune, plan_lines

    plan = plan_finetune(config)
    if as_json:
        print_json(asdict(plan))
    else:
        print_result(plan_lines(plan, config))
    return 0


def recommend(
    data: Data,
    store_dir: StoreDir = Path("store"),
    data_dir: DataDir = Path("data"),
    where: Where = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=MAX_LIMIT, help="Show the N best snapshots.")
    ] = 20,
    as_json: AsJson = False,
) -> int:
    """Rank a store's snapshots by records alone: how starts like them did on other datasets.

    Every fine-tune from a stored snapshot is recorded in the store. No image is read and nothing is computed; a search
    says more, and takes the same records into account.
    """
    from raysnap.search.recommend import recommend as run

    result = run(store_dir, data, where=where, limit=limit, data_dir=data_dir)
    if as_json:
        print_json(result.to_dict())
        return 0
    from raysnap.cli.finetuning.tables import recommendation_lines, recommendation_table

    if result.num_records:
        print_result(recommendation_table(result))
    print_result(recommendation_lines(result, store_dir, data))
    return 0


def predict(
    model: Annotated[str, typer.Option("--model", metavar="SNAPSHOT", help="Name or id of the model in the store.")],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="FOLDER",
            parser=any_path,
            help="Folder of images or texts, with or without classes, or a dataset's name.",
        ),
    ],
    store_dir: StoreDir = Path("store"),
    data_dir: DataDir = Path("data"),
    out_path: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.csv", parser=any_path, help="File to write; by default it is printed."),
    ] = None,
    is_evaluating: Annotated[
        bool, typer.Option("--evaluate", help="Print the metrics on the test split of a dataset with classes.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Apply a stored model to images or texts: a CSV file of classes and probabilities.

    With --evaluate, --data is a dataset, and the metrics on its test split are printed.
    """
    from raysnap.store.store import Store

    store = Store.open(store_dir)
    snapshot = store.resolve(model, by_prefix=True)
    folder = data if is_evaluating else _folder_of(data, data_dir)
    if out_path is not None and out_path.is_dir():
        raise UsageError(f"--out {out_path}: expected the name of a file to write, found a folder")
    if is_evaluating:
        from raysnap.datasets.dataset import open_dataset

        dataset = open_dataset(str(data), data_dir)
        from raysnap.jobs.predict import evaluate

        found, metrics = evaluate(store, snapshot, dataset)
    else:
        from raysnap.jobs.predict import predict as run

        found, metrics = run(store, snapshot, folder), {}
    for fault in found.bad:
        print_message(fault)
    text = found.to_csv(folder if folder.is_dir() else None)
    if out_path is not None:
        from raysnap.atomic import write_atomically

        try:
            out_path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out_path, text)
        except OSError as error:
            raise UsageError(f"--out {out_path}: can't be written: {error.strerror or error}") from None
    if as_json:
        counts = {"snapshot": snapshot, "num_images": len(found.files), "num_bad": len(found.bad)}
        print_json(counts | {"classes": found.classes, "metrics": metrics, "out": str(out_path) if out_path else None})
    elif is_evaluating:
        from raysnap.cli.finetuning.tables import metrics_line

        print_result(metrics_line(metrics, len(found.files), len(found.classes)))
    elif out_path is None:
        from raysnap.cli.console import print_text

        print_text(text)
    else:
        print_result(str(out_path))
    return SOME_FAILED if found.bad else 0


def _folder_of(data: Path, data_dir: Path) -> Path:
    """Return the folder or file of items that is there, or else the folder of the dataset with this name."""
    from raysnap.datasets.dataset import find_dataset, open_dataset

    if data.is_file():
        return data
    if data.name == str(data):
        return find_dataset(str(data), data_dir) or open_dataset(str(data), data_dir).root
    if not data.exists():
        raise UsageError(f"--data {data}: expected a folder of images, found nothing there")
    return data
