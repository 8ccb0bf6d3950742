"""`raysnap store`: inspect a model store, add and export snapshots, verify, clean up."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from raysnap.cli.console import AsJson, StoreDir, any_path, print_failures, print_json, print_result
from raysnap.errors import StoreDamaged, StoreUnreadable, UsageError

ASSUMED_PX = 224  # what most published weights of torchvision were trained with

store_app = typer.Typer(help="Inspect, extend, verify and clean up a model store.")


@store_app.command("ls")
def store_ls(
    store_dir: StoreDir = Path("store"),
    where: Annotated[
        str | None,
        typer.Option("--where", metavar="EXPRESSION", help='List only some snapshots, such as "retrain_index <= 2".'),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """List the store's snapshots."""
    from raysnap.store.store import Store

    summaries = Store.open(store_dir).summaries(where)
    if as_json:
        print_json({"snapshots": [summary._asdict() for summary in summaries]})
    else:
        from raysnap.cli.store_tables import snapshots_table

        print_result(snapshots_table(summaries))
    return 0


SnapshotName = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="Name or id of a snapshot; the first characters of the id will do.")
]


@store_app.command("show")
def store_show(snapshot: SnapshotName, store_dir: StoreDir = Path("store"), as_json: AsJson = False) -> int:
    """Show a snapshot's metadata, lineage and shared blocks.

    The lineage is the chain of snapshots that it was fine-tuned from, and those fine-tuned from it.
    """
    from raysnap.store.store import Store

    store = Store.open(store_dir)
    manifest = store.manifest(snapshot)
    bases = store.lineage(manifest)
    derived = store.summaries(f"base == '{manifest.id}'")
    holders = store.snapshots_with([block.digest for block in manifest.blocks])
    if as_json:
        document = manifest.model_dump(mode="json") | {"names": store.names_of(manifest.id)}
        document |= {"lineage": [base.id for base in bases], "derived": [summary.id for summary in derived]}
        others = {digest: [other for other in found if other != manifest.id] for digest, found in holders.items()}
        print_json(document | {"shared_with": {block.name: others[block.digest] for block in manifest.blocks}})
    else:
        from raysnap.cli.store_tables import blocks_table, lineage_tree, manifest_table

        names = {snapshot: name for name, snapshot in reversed(store.refs().items())}
        print_result(manifest_table(manifest, store.names_of(manifest.id)))
        print_result("")
        print_result(lineage_tree(bases, manifest, derived, names))
        print_result("")
        print_result(blocks_table(manifest, holders, names))
    return 0


@store_app.command("add")
def store_add(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", parser=any_path, help="State dict as a .safetensors or .pth file.")
    ],
    architecture: Annotated[
        str, typer.Option("--arch", metavar="NAME", help="Architecture, as torchvision names it: resnet18.")
    ],
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name for the snapshot.")] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="SNAPSHOT", help="Stored snapshot that it was fine-tuned from.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="Dataset that it was trained on.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME=NUMBER", help="A result, such as val_accuracy=0.93; may be repeated."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            metavar="PIXELS",
            min=1,
            show_default=f"that of --base, or {ASSUMED_PX}",
            help="Side length of its input images.",
        ),
    ] = None,
    entry: Annotated[
        str | None,
        typer.Option(
            "--entry",
            metavar="NAME",
            help="Which weights, of a file that has several, such as model_ema; by default those not averaged.",
        ),
    ] = None,
    store_dir: StoreDir = Path("store"),
    as_json: AsJson = False,
) -> int:
    """Add a torchvision state dict as a snapshot.

    Checkpoints of trainers will do: entries such as `state_dict` and what names begin with, such as `module.`, are
    recognised by the names of the architecture's tensors.
    """
    from raysnap.models.weight_files import read_weights
    from raysnap.store.exchange import add_weights
    from raysnap.store.manifest import DatasetRecord, Preprocessing, check_ref_name
    from raysnap.store.store import Store

    figures = parse_metrics(metrics or [])
    weights = read_weights(path, architecture, entry)  # a file that doesn't fit must not leave a new store behind
    if name is not None:
        check_ref_name(name)
    store = Store.open(store_dir, create=base is None)
    preprocessing = Preprocessing.cropping(image_size or ASSUMED_PX)
    if image_size is None and base is not None:
        preprocessing = store.manifest(base).preprocessing
    written = add_weights(
        store,
        weights,
        architecture,
        name=name,
        base=base,
        dataset=DatasetRecord(name=dataset) if dataset else None,
        preprocessing=preprocessing,
        metrics=figures,
    )
    edge = written.manifest.preprocessing.image_size
    if edge != preprocessing.image_size:
        line = f"already stored, for images of {edge} px; only a snapshot that is removed first can get another size"
        print_failures([{"file": str(path), "line": line}])
    elif image_size is None:
        why = "as its base does" if base is not None else "as --image-size was not given"
        print_failures([{"file": str(path), "line": f"assumed to take images of {edge} px, {why}"}])
    if as_json:
        taken = {"entry": weights.entry, "other_entries": list(weights.others), "image_size": edge}
        print_json(
            {"snapshot": written.manifest.id, "new_blocks": written.new_blocks, "new_bytes": written.new_bytes} | taken
        )
    else:
        from raysnap.humanize import bytes_text, plural

        new = plural(written.new_blocks, "new block")
        print_result(f"{written.manifest.id}: {new}, {bytes_text(written.new_bytes)} written")
        if weights.others:
            others = ", ".join(weights.others)
            print_result(
                f"These are the file's weights {weights.entry!r}; --entry takes others that would fit: {others}"
            )
    return 0


def parse_metrics(given: list[str]) -> dict[str, float]:
    """Return the numbers in `NAME=NUMBER` arguments by name.

    Raises:
        UsageError: an argument has another form, its number is not finite, or its name is repeated.
    """
    figures: dict[str, float] = {}
    for argument in given:
        name, _, number = argument.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value) or name in figures:
            raise UsageError(f"--metric {argument}: expected NAME=NUMBER, each name once, such as val_accuracy=0.93")
        figures[name] = value
    return figures


@store_app.command("export")
def store_export(
    snapshot: SnapshotName,
    to: Annotated[
        Path, typer.Option("--to", metavar="FILE", parser=any_path, help="File to write, .safetensors or .pth.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
    store_dir: StoreDir = Path("store"),
    as_json: AsJson = False,
) -> int:
    """Write a snapshot as a torchvision state dict.

    A model card is written beside it: README.md, or FILE.md where there is another README.md.
    """
    from raysnap.store.exchange import export_snapshot
    from raysnap.store.store import Store

    export = export_snapshot(Store.open(store_dir), snapshot, to, overwrite=overwrite)
    if as_json:
        print_json(asdict(export))
    else:
        print_result(f"{export.weights_path} and {export.card_path}")
    return 0


@store_app.command("diff")
def store_diff(
    first: Annotated[str, typer.Argument(metavar="FIRST", help="Name or id of a snapshot.")],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="Name or id of another snapshot.")],
    store_dir: StoreDir = Path("store"),
    as_json: AsJson = False,
) -> int:
    """Compare two snapshots block by block."""
    from raysnap.store.store import Store

    store = Store.open(store_dir)
    digests = [{block.name: block.digest for block in store.manifest(name).blocks} for name in (first, second)]
    names = list(dict.fromkeys([*digests[0], *digests[1]]))
    rows = [(name, digests[0].get(name), digests[1].get(name)) for name in names]
    if as_json:
        print_json({"blocks": [{"name": n, "first": a, "second": b, "equal": a == b} for n, a, b in rows]})
    else:
        from raysnap.cli.store_tables import differences_table

        print_result(differences_table(first, second, rows))
    return 0


@store_app.command("verify")
def store_verify(store_dir: StoreDir = Path("store"), as_json: AsJson = False) -> int:
    """Read every byte of the store and report damage."""
    from raysnap.store.store import Store

    result = Store.open(store_dir).verify()
    if as_json:
        print_json(result)
    else:
        from raysnap.cli.store_tables import damage_rows, verify_line

        print_result(verify_line(result))
        print_failures(damage_rows(result))
    if result["ok"]:
        return 0
    is_damaged = result["damaged"] or result["damaged_files"]
    return StoreDamaged.exit_code if is_damaged else StoreUnreadable.exit_code


@store_app.command("gc")
def store_gc(
    store_dir: StoreDir = Path("store"),
    grace_s: Annotated[
        float, typer.Option("--grace", metavar="SECONDS", min=0, help="Keep unused files younger than this.")
    ] = 3600.0,
    as_json: AsJson = False,
) -> int:
    """Delete blocks that no snapshot uses."""
    from raysnap.store.store import Store

    result = Store.open(store_dir).gc(grace_s)
    if as_json:
        print_json(result)
    else:
        from raysnap.cli.store_tables import gc_line

        print_result(gc_line(result))
    return 0


@store_app.command("stats")
def store_stats(store_dir: StoreDir = Path("store"), as_json: AsJson = False) -> int:
    """Show how much space sharing blocks saves."""
    from raysnap.store.store import Store

    stats = Store.open(store_dir).stats()
    if as_json:
        print_json(stats)
    else:
        from raysnap.cli.store_tables import savings_line

        print_result(savings_line(stats))
    return 0
