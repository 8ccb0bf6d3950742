"""`raysnap store`: inspect a model store, add and export snapshots, verify, clean up."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raysnap.cli.console import AsJson, StoreDir, any_path, print_failures, print_json, print_result, print_text
from raysnap.errors import StoreDamaged, StoreUnreadable, UsageError

if TYPE_CHECKING:
    from raysnap.store.index import SnapshotSummary

ASSUMED_PX = 224  # what most published weights of torchvision were trained with

store_app = typer.Typer(help="Inspect, extend, verify and clean up a model store.")


@store_app.command("ls")
def store_ls(
    store_dir: StoreDir = Path("store"),
    where: Annotated[
        str | None,
        typer.Option("--where", metavar="EXPRESSION", help='List only some snapshots, such as "retrain_index <= 2".'),
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", metavar="FIELD", help="Field to sort by, such as num_bytes; -FIELD is descending.")
    ] = "created",
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="List only the first N.")] = None,
    form: Annotated[
        Literal["table", "csv", "md"], typer.Option("--format", help="csv and md (Markdown) have every field.")
    ] = "table",
    as_json: AsJson = False,
) -> int:
    """List the store's snapshots."""
    from raysnap.store.store import Store

    summaries = sorted_by(sort, Store.open(store_dir).summaries(where))[:limit]
    if as_json:
        print_json({"snapshots": [summary._asdict() for summary in summaries]})
    elif form == "table":
        from raysnap.cli.store_tables import snapshots_table

        print_result(snapshots_table(summaries))
    else:
        from raysnap.cli.store_tables import snapshots_text

        print_text(snapshots_text(summaries, form))
    return 0


def sorted_by(field: str, summaries: list[SnapshotSummary]) -> list[SnapshotSummary]:
    """Return summaries in the order of a field, descending where it begins with `-`; those without it come last.

    Raises:
        UsageError: they have no such field.
    """
    from raysnap.humanize import suggest
    from raysnap.store.index import SnapshotSummary

    name = field.removeprefix("-")
    key = "names" if name == "name" else name
    if key not in SnapshotSummary._fields:
        hint = suggest(name, SnapshotSummary._fields) or f"; fields: {', '.join(SnapshotSummary._fields)}"
        raise UsageError(f"--sort {field}: unknown field {name!r}{hint}")
    known = [summary for summary in summaries if getattr(summary, key) not in (None, ())]
    known.sort(key=lambda summary: getattr(summary, key), reverse=field != name)
    return [*known, *(summary for summary in summaries if getattr(summary, key) in (None, ()))]


def names_beginning_with(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names in the store that a command line names, for a shell that completes one."""
    folder = Path(context.params.get("store_dir") or "store") / "refs"
    return sorted(path.name for path in folder.glob("*") if path.name.startswith(incomplete)) if folder.is_dir() else []


SnapshotName = Annotated[
    str,
    typer.Argument(
        metavar="SNAPSHOT",
        help="Name or id of a snapshot; the first characters will do.",
        autocompletion=names_beginning_with,
    ),
]


@store_app.command("show")
def store_show(snapshot: SnapshotName, store_dir: StoreDir = Path("store"), as_json: AsJson = False) -> int:
    """Show a snapshot's metadata, lineage and shared blocks.

    The lineage is the chain of snapshots that it was fine-tuned from, and those fine-tuned from it.
    """
    from raysnap.store.store import Store

    store = Store.open(store_dir)
    manifest = store.manifest(store.resolve(snapshot, by_prefix=True))
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

    store = Store.open(store_dir)
    export = export_snapshot(store, store.resolve(snapshot, by_prefix=True), to, overwrite=overwrite)
    if as_json:
        print_json(asdict(export))
    else:
        print_result(f"{export.weights_path} and {export.card_path}")
    return 0


@store_app.command("diff")
def store_diff(
    first: Annotated[
        str,
        typer.Argument(metavar="FIRST", help="Name or id of a snapshot.", autocompletion=names_beginning_with),
    ],
    second: Annotated[
        str,
        typer.Argument(metavar="SECOND", help="Name or id of another snapshot.", autocompletion=names_beginning_with),
    ],
    store_dir: StoreDir = Path("store"),
    as_json: AsJson = False,
) -> int:
    """Compare two snapshots block by block."""
    from raysnap.store.store import Store

    store = Store.open(store_dir)
    manifests = [store.manifest(store.resolve(name, by_prefix=True)) for name in (first, second)]
    digests = [{block.name: block.digest for block in manifest.blocks} for manifest in manifests]
    names = list(dict.fromkeys([*digests[0], *digests[1]]))
    rows = [(name, digests[0].get(name), digests[1].get(name)) for name in names]
    if as_json:
        print_json({"blocks": [{"name": n, "first": a, "second": b, "equal": a == b} for n, a, b in rows]})
    else:
        from raysnap.cli.store_tables import differences_table

        print_result(differences_table(first, second, rows))
    return 0


@store_app.command("rm")
def store_rm(
    snapshots: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SNAPSHOT", help="Names or ids of snapshots, in full.", autocompletion=names_beginning_with
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", metavar="EXPRESSION", help='Remove those that match, such as "accuracy < 0.5".'),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go and what that would free; remove nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what --where finds; without it, it is a dry run.")] = False,
    store_dir: StoreDir = Path("store"),
    as_json: AsJson = False,
) -> int:
    """Remove snapshots and their names.

    Blocks that no other snapshot needs stay until the next `store gc`.
    """
    from raysnap.store.store import Store

    if bool(snapshots) == (where is not None):
        raise UsageError("store rm: expected names of snapshots or --where, found both or neither")
    store = Store.open(store_dir)
    named = {store.resolve(snapshot) for snapshot in snapshots or ()}
    matching = {summary.id for summary in store.summaries(where)} if where is not None else named
    going = [summary for summary in store.summaries() if summary.id in matching]
    derived = [one.id for one in store.summaries() if one.base in matching and one.id not in matching]
    freed = store.freed_by(matching)
    is_dry = dry_run or (where is not None and not yes)
    if not is_dry:
        store.remove_snapshots(matching)
    if as_json:
        found = {"removed": sorted(matching), "dry_run": is_dry, "orphaned": derived}
        print_json(found | {"num_blocks_freed": freed.num_blocks, "freed_bytes": freed.num_bytes})
    else:
        from raysnap.cli.store_tables import removal_lines, snapshots_table

        print_result(snapshots_table(going))
        hint = "" if dry_run or not is_dry else " Add --yes to remove them."
        print_result(f"\n{removal_lines(len(matching), len(derived), freed, is_dry=is_dry)}{hint}")
    return 0


@store_app.command("du")
def store_du(
    by: Annotated[
        Literal["lineage", "dataset", "architecture", "age"],
        typer.Option("--by", help="What snapshots are grouped by; lineage is the base that fine-tunes began with."),
    ] = "lineage",
    store_dir: StoreDir = Path("store"),
    as_json: AsJson = False,
) -> int:
    """Show who holds which bytes of the store.

    Blocks that only one group needs would be freed with it; those that groups share count as held by each.
    """
    from raysnap.store.store import Store

    usage = Store.open(store_dir).usage(by)
    if as_json:
        print_json(usage)
    else:
        from raysnap.cli.store_tables import usage_line, usage_table

        print_result(usage_table(usage))
        print_result(f"\n{usage_line(usage)}")
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
