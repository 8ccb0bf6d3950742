"""`raysnap store`: inspect a model store, add and export snapshots, verify, clean up."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raysnap.cli.console import (
    AsJson,
    StoreArgument,
    StoreDir,
    any_path,
    print_failures,
    print_json,
    print_result,
    print_text,
    store_place,
)
from raysnap.config.choices import Interpolation, UsageAxis
from raysnap.errors import RaysnapError, StoreDamaged, StoreUnreadable, UsageError
from raysnap.humanize import given_first

if TYPE_CHECKING:
    from raysnap.datasets.resizing import ResizeMode
    from raysnap.store.exchange.weights_in import Added
    from raysnap.store.index import SnapshotSummary

MIN_EDGE, MAX_EDGE = 16, 4096  # pixels, or tokens of a text, as in the configuration of jobs

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
    made_by = store.record_of(manifest)
    if as_json:
        document = manifest.model_dump(mode="json") | {"names": store.names_of(manifest.id)}
        document |= {"made_by": made_by.model_dump(mode="json") if made_by else None}
        document |= {"lineage": [base.id for base in bases], "derived": [summary.id for summary in derived]}
        others = {digest: [other for other in found if other != manifest.id] for digest, found in holders.items()}
        print_json(document | {"shared_with": {block.name: others[block.digest] for block in manifest.blocks}})
    else:
        from raysnap.cli.store_tables import blocks_table, lineage_tree, manifest_table, searched_line

        names = {snapshot: name for name, snapshot in reversed(store.refs().items())}
        given = given_first(store.names_of(manifest.id), manifest.trial)
        print_result(manifest_table(manifest, given))
        print_result("")
        print_result(lineage_tree(bases, manifest, derived, names))
        if made_by is not None and made_by.searched is not None:
            print_result(searched_line(made_by.searched))
        print_result("")
        print_result(blocks_table(manifest, holders, names))
    return 0


@store_app.command("add")
def store_add(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            parser=any_path,
            help="File of weights (.safetensors, .pth, .pt, .bin, .ckpt), index of shards, or folder of one model.",
        ),
    ],
    architecture: Annotated[
        str | None,
        typer.Option(
            "--arch",
            metavar="NAME",
            show_default="found by the tensors",
            help="Architecture: resnet18, timm/vit_tiny_patch16_224.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name for the snapshot.")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="SNAPSHOT",
            help="Stored snapshot that it was fine-tuned from; a LoRA adapter is merged into it, or into a file.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="Dataset that it was trained on.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME=NUMBER", help="A result, such as val_accuracy=0.93; may be repeated."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", metavar="NAME", help="torchvision weights whose preprocessing it has, such as IMAGENET1K_V2."
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            metavar="PIXELS",
            min=MIN_EDGE,
            max=MAX_EDGE,
            show_default="that of --weights, the folder or --base, or 224",
            help="Side length of its input images; alone, it keeps the crop's share of the resized image. Of texts, "
            "the number of tokens.",
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option("--resize", metavar="N[xN]", help="What images are resized to: the shorter side, or both (NxN)."),
    ] = None,
    interpolation: Annotated[
        Interpolation | None,
        typer.Option("--interpolation", help="How images are resized."),
    ] = None,
    mean: Annotated[
        str | None, typer.Option("--mean", metavar="N[,N,N]", help="Mean that is subtracted from pixels in 0..1.")
    ] = None,
    std: Annotated[
        str | None, typer.Option("--std", metavar="N[,N,N]", help="Deviation that pixels are divided by after that.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="FILE",
            parser=any_path,
            help="Of weights that see texts: tokenizer.json, where it isn't beside them.",
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
    """Add weights as snapshots, one for each PATH.

    Checkpoints of trainers will do: entries such as `state_dict` and what names begin with, such as `module.`, are
    recognised by the names of the architecture's tensors. Folders are those of transformers, timm and accelerate; how
    their model sees images, or the tokenizer of one that sees texts, is taken from the files there. A folder of a LoRA
    adapter is merged into its --base. Several snapshots are named after their files.
    """
    from raysnap.store.exchange.weights_in import InputOptions, add_path
    from raysnap.store.manifest import DatasetRecord, check_ref_name
    from raysnap.training.trial import slug

    if name is not None:
        check_ref_name(name)
        if len(paths) > 1:
            raise UsageError(f"--name {name}: expected one PATH with it, found {len(paths)}; leave it out")
    add = partial(
        add_path,
        store_dir,
        architecture=architecture,
        base=base,
        dataset=DatasetRecord(name=dataset) if dataset else None,
        metrics=parse_metrics(metrics or []),
        entry=entry,
        options=InputOptions(
            weights,
            image_size,
            parse_resize(resize) if resize else None,
            interpolation,
            parse_channels("--mean", mean) if mean else None,
            parse_channels("--std", std) if std else None,
            tokenizer,
        ),
    )
    done, failed = [], {}
    for path in paths:
        try:
            done.append(add(path, name=name, suggested_name=slug(path.stem) if len(paths) > 1 else None))
        except RaysnapError as error:
            if len(paths) == 1:
                raise
            failed[str(path)] = str(error)
    print_failures([{"file": str(one.path), "line": line} for one in done for line in one.remarks])
    print_failures([{"line": line} for line in failed.values()])
    if as_json:
        documents = [added_document(one) for one in done]
        faults = [{"path": path, "error": line} for path, line in failed.items()]
        print_json(documents[0] if len(paths) == 1 else {"added": documents, "failed": faults})
    else:
        from raysnap.cli.store_tables import added_lines

        for one in done:
            print_result("\n".join(added_lines(one, has_path=len(paths) > 1)))
    return 1 if failed else 0


def added_document(added: Added) -> dict[str, Any]:
    """Return what `store add --json` says of one snapshot."""
    manifest = added.written.manifest
    return {
        "path": str(added.path),
        "name": added.name,
        "snapshot": manifest.id,
        "architecture": manifest.architecture,
        "new_blocks": added.written.new_blocks,
        "new_bytes": added.written.new_bytes,
        "entry": added.weights.entry,
        "other_entries": list(added.weights.others),
        "image_size": manifest.preprocessing.image_size,
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
    }


def parse_resize(text: str) -> tuple[ResizeMode, int]:
    """Return how `--resize` says that images are resized: `256` is the shorter side, `224x224` both.

    Raises:
        UsageError: it has another form.
    """
    sides = text.split("x")
    if len(sides) > 2 or len(set(sides)) > 1 or not all(side.isascii() and side.isdigit() for side in sides):
        raise UsageError(f"--resize {text}: expected the shorter side, such as 256, or both, such as 224x224")
    if not MIN_EDGE <= int(sides[0]) <= MAX_EDGE:
        raise UsageError(f"--resize {text}: expected {MIN_EDGE} to {MAX_EDGE} pixels")
    return ("squash" if len(sides) == 2 else "shorter_side"), int(sides[0])


def parse_channels(option: str, text: str) -> tuple[float, float, float]:
    """Return a number for each channel: `0.5`, or `0.485,0.456,0.406`.

    Raises:
        UsageError: it has another form, or a number is not finite.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3 or not all(map(math.isfinite, values)) or (option == "--std" and not all(values)):
        kind = "number other than 0" if option == "--std" else "number"
        raise UsageError(f"{option} {text}: expected one {kind} or three, such as 0.485,0.456,0.406")
    return values[0], values[1], values[2]


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
        Path,
        typer.Option(
            "--to",
            metavar="PATH",
            parser=any_path,
            help="File to write, .safetensors or .pth, or a folder for models of timm and transformers.",
        ),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
    store_dir: StoreDir = Path("store"),
    as_json: AsJson = False,
) -> int:
    """Write a snapshot as the library of its model reads it.

    A file is a plain state dict; a folder has the configuration and how the model sees images as well. A model card is
    written beside it, which says how to load it: README.md, or FILE.md where there is another README.md.
    """
    from raysnap.store.exchange.weights_out import export_snapshot
    from raysnap.store.store import Store

    store = Store.open(store_dir)
    export = export_snapshot(store, store.resolve(snapshot, by_prefix=True), to, overwrite=overwrite)
    print_failures([{"line": line} for line in export.remarks])
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
        UsageAxis,
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


@store_app.command("copy")
def store_copy(
    source: Annotated[
        StoreArgument,
        typer.Argument(metavar="FROM", parser=store_place, help="Store to copy: a folder, or s3://bucket/prefix."),
    ],
    target: Annotated[
        StoreArgument,
        typer.Argument(metavar="TO", parser=store_place, help="Store to copy to, created if there is none."),
    ],
    where: Annotated[
        str | None,
        typer.Option("--where", metavar="EXPRESSION", help='Copy only some snapshots, such as "accuracy > 0.9".'),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Copy a store to another folder or bucket: what is missing there, verified.

    Names are copied where they are free, and so are records of fine-tunes. Run it again to continue a copy that was
    interrupted.
    """
    from raysnap.store.store import Store

    copied = Store.open(source).copy_to(Store.open(target, create=True), where)
    if as_json:
        print_json(asdict(copied))
    else:
        from raysnap.cli.store_tables import copied_lines

        print_result(copied_lines(copied))
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
