"""`raysnap data`: list, prepare and check datasets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from raysnap.cli.console import (
    SOME_FAILED,
    AsJson,
    DataDir,
    any_path,
    name_or_path,
    print_failures,
    print_json,
    print_result,
)
from raysnap.config.choices import CacheKind, ClassLevel
from raysnap.progress import show_progress

data_app = typer.Typer(help="List, prepare and check datasets.")


@data_app.command("ls")
def data_ls(data_dir: DataDir = Path("data"), as_json: AsJson = False) -> int:
    """List known datasets and local ones, with sources and licences."""
    from raysnap.datasets.inventory import list_datasets

    summaries = list_datasets(data_dir)
    if as_json:
        print_json({"datasets": [asdict(summary) for summary in summaries]})
    else:
        from raysnap.cli.dataset_tables import datasets_table, sources_table

        print_result(datasets_table(summaries))
        print_result("")
        print_result(sources_table(summaries))
    return 0


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a dataset; see `raysnap data ls`.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            metavar="PATH",
            parser=any_path,
            help="A published file, or a folder of them, packed or unpacked.",
        ),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Download the published files first.")] = False,
    allow_other_counts: Annotated[
        bool, typer.Option("--allow-other-counts", help="Accept image counts that differ from the published ones.")
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            parser=any_path,
            help="Table (CSV, TSV, JSON) that names the images in the folder PATH and their classes.",
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            "--label-column",
            metavar="COLUMN",
            help="Column of the classes in that table, in parquet files or in tables of texts.",
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option("--text-column", metavar="COLUMN", help="Column of the texts in tables of them.")
    ] = None,
    class_folders: Annotated[
        ClassLevel | None,
        typer.Option(
            "--class-folders",
            metavar="LEVEL",
            help="Where folders are nested, which of them are the classes: outer or inner.",
        ),
    ] = None,
    data_dir: DataDir = Path("data"),
    as_json: AsJson = False,
) -> int:
    """Convert a dataset's published files, or your own, into a folder of images or texts.

    The result goes to the data folder, under the dataset's name. Built-in datasets are made and need no files. With a
    new name, PATH holds your own data: images with a table of labels or in nested folders, parquet files with embedded
    images, tar shards, or tables of texts (CSV with a header, JSON lines).
    """
    from raysnap.datasets.dataset import BUILT_IN
    from raysnap.datasets.published import SOURCES
    from raysnap.errors import UsageError
    from raysnap.prepare.convert import prepare_dataset

    if name in SOURCES or name in BUILT_IN or source is None:
        if any((labels, label_column, text_column, class_folders)):
            found = "no --source" if source is None else "the name of a known dataset"
            raise UsageError(
                f"{name}: expected a new name and --source for your own data with --labels, --label-column, "
                f"--text-column or --class-folders, found {found}"
            )
        source = _official_files(name, source, data_dir, download=download)
        result = prepare_dataset(name, source, data_dir, allow_other_counts=allow_other_counts)
    else:
        from raysnap.prepare.own import prepare_own

        result = prepare_own(
            name,
            source,
            data_dir,
            labels=labels,
            label_column=label_column,
            text_column=text_column,
            level=class_folders,
        )
    if result.account is not None:
        print_failures([{"line": line} for line in result.account.lines()])
    if as_json:
        facts = {"counts": result.counts, "num_classes": result.num_classes, "num_bad": result.num_bad}
        print_json({"dataset": name, **facts} | ({"data": asdict(result.account)} if result.account else {}))
    else:
        from raysnap.cli.dataset_tables import dataset_line

        print_result(dataset_line(result.dataset.root, result.num_classes, result.counts))
        if download and source:
            print_result(f"The downloaded files are kept in {source}.")
        print_failures(
            [{"error": f"{result.num_bad} {result.dataset.kind} could not be read"}] if result.num_bad else []
        )
    return 0


def _official_files(name: str, source: Path | None, data_dir: Path, *, download: bool) -> Path | None:
    """Return where a dataset's original files are, after downloading them if asked to; None if it has none.

    Raises:
        UsageError: both a source and a download were asked for.
        DataError: the dataset has original files, and neither was asked for.
    """
    from raysnap.datasets.published import SOURCES
    from raysnap.errors import DataError, UsageError

    if source and download:
        raise UsageError("expected --source PATH or --download, found both; leave one of them out")
    if source or name not in SOURCES:
        return source
    if download:
        from raysnap.prepare.downloads import download_dataset

        with show_progress() as on_progress:
            return download_dataset(name, data_dir, on_progress)
    from raysnap.datasets.inventory import how_to_get

    wanted = "--source PATH or --download" if SOURCES[name].is_downloadable else "--source PATH"
    raise DataError(f"dataset {name!r}: expected {wanted}, found none; {how_to_get(name)}")


@data_app.command("check")
def data_check(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", parser=name_or_path, help="Path of an ImageFolder, or name of a dataset."),
    ],
    sheet_path: Annotated[
        Path | None,
        typer.Option(
            "--sheet",
            metavar="FILE.png",
            parser=any_path,
            help="Also write a contact sheet, an overview of sample images.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed for choosing the sheet's images.")] = 0,
    data_dir: DataDir = Path("data"),
    as_json: AsJson = False,
) -> int:
    """Check every image or text of a dataset for damage, duplicates and leaks.

    A leak is a picture or text that is in more than one split. Exit code 1 if an item can't be read or leaks.
    """
    from raysnap.datasets.dataset import open_dataset
    from raysnap.datasets.inspection import check_dataset
    from raysnap.errors import UsageError

    dataset = open_dataset(path, data_dir)
    if sheet_path:
        from raysnap.datasets.contact_sheet import check_sheet_path, write_contact_sheet

        if dataset.kind != "images":
            raise UsageError(f"--sheet {sheet_path}: expected a dataset of images, found {dataset.kind}; leave it out")
        check_sheet_path(sheet_path)
    with show_progress() as on_progress:
        result = check_dataset(dataset, on_progress)
    if sheet_path:
        write_contact_sheet(dataset, {file.path for file in result.bad}, sheet_path, seed)
    if as_json:
        print_json(result.to_dict())
    else:
        from raysnap.cli.dataset_tables import check_failures, check_table, class_counts_table, dataset_line

        print_result(dataset_line(result.root, len(result.classes), result.num_per_split))
        print_result("")
        print_result(class_counts_table(result.counts))
        print_result("")
        print_result(check_table(result))
        if sheet_path:
            print_result(f"\nContact sheet: {sheet_path}")
        print_failures(check_failures(result))
    return 0 if result.is_sound else SOME_FAILED


@data_app.command("cache")
def data_cache(
    datasets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATASET", help="Names or folders of datasets; by default those of the data folder, and all others."
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete what is listed.")] = False,
    kind: Annotated[
        CacheKind | None,
        typer.Option("--kind", help="Only caches of this kind."),
    ] = None,
    data_dir: DataDir = Path("data"),
    as_json: AsJson = False,
) -> int:
    """Show, or clear, what is cached for datasets, and blocks of stores in buckets.

    Caches lie in `.raysnap` in the dataset's folder, or in the user's cache folder: decoded images (pixels), tokens of
    texts (tokens), features of searches (features) and what these answered (answers), outputs of frozen blocks in
    fine-tunes (prefixes), blocks that were fetched (blocks). What is cleared is made again when needed; clear decoded
    images and tokens only while nothing runs on the dataset.
    """
    from raysnap.datasets.dataset import find_dataset, folders_in
    from raysnap.datasets.disk_cache import clear_cache, find_caches

    roots = [find_dataset(name, data_dir) for name in datasets or folders_in(data_dir)]
    found = find_caches([root for root in roots if root is not None], with_others=not datasets)
    caches = [cache for cache in found if kind in (None, cache.kind)]
    freed_bytes = sum(clear_cache(cache) for cache in caches) if clear else 0
    total_bytes = sum(cache.num_bytes for cache in caches)
    if as_json:
        rows = [asdict(cache) for cache in caches]
        print_json({"caches": rows, "total_bytes": total_bytes, "freed_bytes": freed_bytes})
    else:
        from raysnap.cli.dataset_tables import caches_table
        from raysnap.humanize import bytes_text, plural

        if caches:
            print_result(caches_table(caches))
        taken = f"{bytes_text(total_bytes)} in {plural(len(caches), 'cache')}"
        print_result(f"{taken}, {bytes_text(freed_bytes)} freed" if clear else taken)
    return 0
