"""`raysnap data`: list, prepare and check datasets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from raysnap.console import SOME_FAILED, AsJson, DataDir, print_failures, print_json, print_result

data_app = typer.Typer(help="Datasets: list, prepare, check.")


@data_app.command("ls")
def data_ls(data_dir: DataDir = Path("data"), as_json: AsJson = False) -> int:
    """List the datasets known by name or found, and where each can be had."""
    from raysnap.inventory import list_datasets

    summaries = list_datasets(data_dir)
    if as_json:
        print_json({"datasets": [asdict(summary) for summary in summaries]})
    else:
        from raysnap.tables import datasets_table

        print_result(datasets_table(summaries))
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
        print_json(
            {"dataset": name, "counts": result.counts, "num_classes": result.num_classes, "num_bad": result.num_bad}
        )
    else:
        from raysnap.tables import dataset_line

        print_result(dataset_line(result.dataset.root, result.num_classes, result.counts))
        print_failures([{"error": f"{result.num_bad} images could not be read"}] if result.num_bad else [])
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
        print_json(asdict(result) | {"ok": result.is_sound})
    else:
        from raysnap.tables import dataset_line

        totals = {split: sum(by_class.values()) for split, by_class in result.counts.items()}
        print_result(dataset_line(result.root, len(result.classes), totals, result.num_ignored))
        print_failures([{"error": reason} for _, reason in result.bad])
        same = [", ".join(str(image.relative_to(result.root)) for image in group) for group in result.duplicates]
        print_failures([{"where": str(result.root), "error": f"the same bytes in {group}"} for group in same])
    return 0 if result.is_sound else SOME_FAILED
