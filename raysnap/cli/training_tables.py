"""What commands show people: rich tables made from results; nothing here prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from raysnap.humanize import bytes_text, count_text, flops_text, plural, score_text, seconds_text, share_text

MAX_ROWS = 20
MAX_NAMES = 2
MAX_FEWEST = 3
MAX_SAME_PATHS = 4


def simple_table(columns: Sequence[str], rows: Iterable[Sequence[object]], numeric: Sequence[str] = ()) -> Table:
    """A borderless table with a bold header, if any column has a name; `numeric` columns are aligned to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns))
    for column in columns:
        stays_whole = column in ("id", *numeric)  # on a narrow terminal the other columns give way
        justify = "right" if column in numeric else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=stays_whole)
    for row in rows:
        table.add_row(*("–" if value is None else escape(str(value)) for value in row))
    return table


def ranking_table(result: Mapping[str, Any], max_rows: int = MAX_ROWS) -> Table:
    """The first lines of a ranking; who can't be told from the best is marked."""
    rows = [
        (
            entry["rank"],
            entry["name"],
            score_text(entry["score"]),
            "best" if entry["rank"] == 1 else "tied with the best" if entry["tied_with_best"] else "",
            entry["num_train"],
            entry["snapshot"][:12],
        )
        for entry in result["ranking"][:max_rows]
    ]
    return simple_table(["", "snapshot", "score", "", "items", "id"], rows, numeric=["", "score", "items"])


def search_lines(result: Mapping[str, Any]) -> str:
    """Below a ranking: what the search took, how near its bound that is, and what no search would have taken."""
    timings_s, static, num_ranked = result["timings_s"], result["static_baseline"], len(result["ranking"])
    lines = [f"{plural(result['num_candidates'], 'candidate')} by {result['method']}, {timings_line(timings_s)}"]
    if not result["work"]["flops"]:
        lines.append("All features were there from searches before")
    elif result["bound_s"]:
        ratio = (timings_s["total"] - timings_s.get("start_workers", 0.0)) / result["bound_s"]
        lines.append(f"{ratio:.2f}\u00a0× the bound of {seconds_text(result['bound_s'])} for this work on this machine")
    if static:
        place = f"place {static['rank']} of {num_ranked}, score {score_text(static['score'])}"
        lines.append(f"Without a search one would take the largest pretrained model, {static['name']}: {place}")
    return "\n".join(lines)


def rungs_table(rungs: Sequence[Mapping[str, Any]]) -> Table:
    """What each round of a search did."""
    rows = [
        (
            number,
            rung["num_train"],
            rung["num_test"],
            rung["num_candidates"],
            rung["num_kept"],
            rung["num_tied"],
            flops_text(rung["flops"]),
            count_text(rung["block_item_passes"]),
            bytes_text(rung["block_bytes_read"]),
            seconds_text(rung["total_s"]),
        )
        for number, rung in enumerate(rungs, start=1)
    ]
    columns = ["rung", "train", "test", "in", "kept", "tied", "compute", "block passes", "read", "time"]
    return simple_table(columns, rows, numeric=columns)


def prefix_tree(branches: Sequence[Any], title: str) -> Tree:
    """The branches of a search's prefix tree: blocks, digests, how many candidates share them, part of the FLOPs."""
    root = Tree(Text(title, style="bold"), guide_style="dim")
    stack = [(root, branch) for branch in reversed(branches)]
    while stack:
        above, branch = stack.pop()
        drawn = above.add(_branch_text(branch, is_root=above is root))
        stack.extend((drawn, below) for below in reversed(branch.branches))
    return root


def _branch_text(branch: Any, *, is_root: bool) -> Text:
    share = share_text(branch.flops_share) if branch.flops_share >= 0.005 else "under 1\u00a0%"
    sums = f"{plural(branch.num_candidates, 'candidate')}  {share} of the compute"
    if branch.num_folded:
        return Text(f"and {plural(branch.num_folded, 'branch', 'branches')} more  {sums}", style="dim")
    is_one = branch.num_blocks == 1
    blocks = branch.first_block if is_one else f"{branch.first_block} … {branch.last_block}"
    digests = branch.first_digest[:8] if is_one else f"{branch.first_digest[:8]} … {branch.last_digest[:8]}"
    text = Text.assemble(
        f"{branch.architecture} " if is_root else "", (blocks, "bold"), (f"  {digests}", "dim"), f"  {sums}"
    )
    if branch.names:
        more = f" and {len(branch.names) - MAX_NAMES} more" if len(branch.names) > MAX_NAMES else ""
        text.append(f"  → {', '.join(branch.names[:MAX_NAMES])}{more}", style="green")
    return text


def methods_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    """A benchmark's cells side by side: what each took, against the slowest on its question, and who won."""
    axes = [axis for axis in _CELL_AXES if axis[0] != "method" and len({cell[axis[0]] for cell in cells}) > 1]
    questions = [tuple(cell[key] for key, *_ in _CELL_AXES if key != "method") for cell in cells]
    slowest_s: dict[tuple, float] = {}
    for question, cell in zip(questions, cells, strict=True):
        slowest_s[question] = max(slowest_s.get(question, 0.0), cell["median_s"])
    spreads = [f"± {share_text(c['iqr_s'] / 2 / c['median_s'])}" if c["num_done"] > 1 else "" for c in cells]
    columns = {title: [text(cell[key]) for cell in cells] for key, title, text in axes} | {
        "method": [cell["method"] for cell in cells],
        "time": [seconds_text(cell["median_s"]) for cell in cells],
        "spread": spreads if any(spreads) else [],
        "speed-up": [
            f"{slowest_s[question] / cell['median_s']:.1f}×" for question, cell in zip(questions, cells, strict=True)
        ],
        "compute": [flops_text(cell["flops"]) for cell in cells],
        "block passes": [count_text(cell["block_item_passes"]) for cell in cells],
        "from disk": [bytes_text(cell["disk_bytes_read"]) for cell in cells],
        "first": [cell["best"] for cell in cells],
        "score": [score_text(cell["best_score"]) for cell in cells],
        "doubts": [_doubt(cell) for cell in cells] if any(cell["is_noisy"] for cell in cells) else [],
    }
    columns = {title: values for title, values in columns.items() if values}
    numeric = ["time", "spread", "speed-up", "compute", "block passes", "from disk", "score", "image size", "budget"]
    return simple_table(list(columns), list(zip(*columns.values(), strict=True)), numeric=numeric)


def _doubt(cell: Mapping[str, Any]) -> str:
    """What is to be doubted of a cell in a few words; all of it is in the rows."""
    if not cell["is_noisy"]:
        return ""
    if cell["page_cache"] != cell["cache"]:
        return f"not {cell['cache']}"
    return "noisy"


_CELL_AXES: Sequence[tuple[str, str, Any]] = (
    ("group", "group", str),
    ("store", "store", lambda store: Path(store).name),
    ("dataset", "dataset", str),
    ("where", "where", lambda where: where or "all"),
    ("num_train", "train", lambda count: "all" if count is None else count_text(count)),
    ("num_test", "test", lambda count: "all" if count is None else count_text(count)),
    ("image_size", "image size", lambda image_size: f"{image_size} px"),
    ("budget_bytes", "budget", lambda budget: "none" if budget is None else bytes_text(budget)),
    ("proxy", "proxy", str),
    ("method", "method", str),
    ("cache", "cache", str),
)


def noise_lines(cells: Iterable[Mapping[str, Any]]) -> str:
    """Why cells are to be doubted, a line each, the first reason and how many more there are; empty without any."""
    doubted = [(cell["cell"], cell["noise"]) for cell in cells if cell["is_noisy"]]
    lines = [
        f"{name}: {noise[0]}{f' (and {len(noise) - 1} more)' if len(noise) > 1 else ''}"
        for name, noise in doubted[:MAX_ROWS]
    ]
    if len(doubted) > MAX_ROWS:
        lines.append(f"and {plural(len(doubted) - MAX_ROWS, 'more cell')}; results.jsonl has all")
    return "\n".join(lines)


def cells_table(cells: Iterable[Any], works: Iterable[Any]) -> Table:
    """A benchmark's planned cells and what one run of each will compute; `~` where that is an average of lots."""
    rows = []
    for cell, work in zip(cells, works, strict=True):
        mark = "" if work is None or work.is_exact else "~"
        rows.append(
            (
                cell.name,
                work and work.num_candidates,
                work and work.num_items,
                work and f"{mark}{count_text(round(work.image_forwards))}",
                work and f"{mark}{flops_text(work.flops)}",
                cell.repeats,
            )
        )
    columns = ["cell", "candidates", "items", "image-forwards", "compute", "runs"]
    return simple_table(columns, rows, numeric=columns[1:])


def timings_line(timings_s: Mapping[str, float]) -> str:
    """Where a search's time went, largest part first."""
    parts = sorted(((value, name) for name, value in timings_s.items() if name != "total"), reverse=True)
    shown = ", ".join(f"{name.replace('_', ' ')} {seconds_text(value)}" for value, name in parts if value > 0)
    return f"{seconds_text(timings_s['total'])} in all: {shown}"


def trials_table(trials: Iterable[Any]) -> Table:
    """A plan's trials."""
    rows = [(trial.id, trial.architecture, trial.dataset, trial.retrain_index, trial.train.epochs) for trial in trials]
    return simple_table(
        ["trial", "architecture", "dataset", "retrain index", "epochs"], rows, numeric=["retrain index", "epochs"]
    )


def points_table(trials: Sequence[Any]) -> Table:
    """A sweep's trials and what was sampled for them, a column per key."""
    keys = _point_keys(trial.point for trial in trials)
    shown = trials[:MAX_ROWS]
    rows = [(trial.id.partition("-")[0], *(_cell(trial.point, key) for key in keys)) for trial in shown]
    if len(trials) > len(shown):
        rows.append(("…", f"and {len(trials) - len(shown)} more; --json lists all", *[""] * (len(keys) - 1)))
    return simple_table(["trial", *map(_column, keys)], rows)


def sweep_table(rows: Sequence[Mapping[str, Any]], metric: str, mode: str) -> Table:
    """A sweep's fine-tunes that came to something, the best first: where they stand, what they were, what they took."""
    compared = [row for row in rows if row["role"] != "base" and row.get("objective") is not None]
    sign = -1 if mode == "max" else 1
    compared.sort(key=lambda row: (row["status"] != "done", sign * row["objective"], row["trial"]))
    keys = _point_keys(row["point"] for row in compared)
    lines = []
    for row in compared[:MAX_ROWS]:
        timings_s = row["timings_s"]
        seconds = seconds_text(timings_s["total"]) if timings_s else None
        ended = f"stopped: {row['stopped'].replace('_', ' ')}" if row["stopped"] else ""
        cells = [_cell(row["point"], key) for key in keys]
        epochs = f"{row['metrics']['best_epoch']}/{len(row['history'])}"
        tested = score_text(row["metrics"].get("test_accuracy"))
        number = row["trial"].partition("-")[0]
        lines.append((number, *cells, score_text(row["objective"]), tested, epochs, seconds, ended))
    heads = ["trial", *map(_column, keys), metric.replace("_", " "), "test accuracy", "best epoch", "time", ""]
    return simple_table(heads, lines, numeric=heads[-5:-1])


def sweep_lines(summary: Any) -> str:
    """What became of a sweep, some lines of text."""
    counts = [
        f"{summary.num_done} of {plural(summary.num_trials, 'trial')} done",
        *([f"{summary.num_stopped} stopped early"] if summary.num_stopped else []),
        *([f"{summary.num_left} left when the time was over; --resume goes on"] if summary.num_left else []),
        f"{summary.num_failed} failed",
    ]
    best = summary.best
    if best is None:
        return f"{', '.join(counts)}."
    where = f", in the store as {best['trial']} ({best['snapshot'][:12]})" if best["snapshot"] else ""
    return f"{', '.join(counts)}.\nBest: {best['trial']} with {summary.metric} {score_text(best['objective'])}{where}."


def _point_keys(points: Iterable[Mapping[str, Any] | None]) -> list[str]:
    return list(dict.fromkeys(key for point in points for key in point or {}))


def _column(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _cell(point: Mapping[str, Any] | None, key: str) -> str:
    """A sampled value in few characters; nothing where its conditions did not hold."""
    if key not in (point or {}):
        return ""
    value = point[key]
    return f"{value:g}" if isinstance(value, float) else str(value)


def forecast_lines(needed: Any, num_finetunes: int, num_bases: int) -> str:
    """What a job will take, some lines of text."""
    from raysnap.planning.forecast import GPU_FLOPS_PER_S

    saved = 1 - needed.store_bytes / needed.copied_bytes if needed.copied_bytes else 0.0
    lines = [
        f"{plural(num_finetunes, 'fine-tune')} and {plural(num_bases, 'base')}, {plural(needed.num_epochs, 'epoch')}, "
        f"{flops_text(needed.train_flops)}: roughly {seconds_text(needed.cpu_s)} on this machine's CPUs, or "
        f"{seconds_text(needed.gpu_s)} on one GPU that keeps {flops_text(GPU_FLOPS_PER_S)}/s.",
        f"Store: at most {bytes_text(needed.store_bytes)} of new blocks; copies would take "
        f"{bytes_text(needed.copied_bytes)} ({share_text(saved)} saved).",
        f"Besides: checkpoints at most {bytes_text(needed.checkpoint_bytes)} at a time, decoded images "
        f"{bytes_text(needed.pixel_bytes)}, outputs of frozen blocks {bytes_text(needed.prefix_bytes)}.",
    ]
    lines += [f"Drawn first: {', '.join(needed.to_draw)}."] if needed.to_draw else []
    lines += [f"Downloaded first: {', '.join(needed.to_download)}."] if needed.to_download else []
    return "\n".join([*lines, "Nothing was written."])


def trained_table(trials: Iterable[Any]) -> Table:
    """Finished trials by dataset and architecture: how many, how good, and which is the best on val."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for trial in trials:
        groups.setdefault((trial.dataset or "", trial.architecture), []).append(trial)
    rows = []
    for (dataset, architecture), found in sorted(groups.items()):
        scored = [trial for trial in found if trial.val_accuracy is not None]
        best = max(scored, key=lambda trial: trial.val_accuracy, default=None)
        rows.append(
            (
                dataset,
                architecture,
                len(found),
                score_text(median(trial.val_accuracy for trial in scored)) if scored else None,
                score_text(best.val_accuracy) if best else None,
                score_text(best.test_accuracy) if best else None,
                best.name if best else None,
                seconds_text(sum(trial.total_s or 0.0 for trial in found)),
            )
        )
    columns = ["dataset", "architecture", "trials", "median val", "best val", "its test", "best", "time"]
    return simple_table(columns, rows, numeric=["trials", "median val", "best val", "its test", "time"])


def snapshots_table(summaries: Iterable[Any]) -> Table:
    """A store's snapshots, a line each."""
    rows = [
        (
            ", ".join(summary.names) or None,
            summary.id[:12],
            summary.architecture,
            summary.dataset,
            summary.retrain_index,
            score_text(summary.accuracy),
            bytes_text(summary.num_bytes),
            summary.created[:16].replace("T", " "),
        )
        for summary in summaries
    ]
    columns = ["name", "id", "architecture", "dataset", "r", "val acc.", "bytes", "created"]
    return simple_table(columns, rows, numeric=["r", "val acc.", "bytes"])


def manifest_table(manifest: Any, names: Sequence[str]) -> Table:
    """What a snapshot's manifest says of it, a line each."""
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(manifest.metrics.items()))
    return simple_table(
        ["", ""],
        [
            ("id", manifest.id),
            ("names", ", ".join(names) or None),
            ("architecture", f"{manifest.architecture}, {plural(manifest.num_classes, 'class', 'classes')}"),
            ("base", manifest.base),
            ("dataset", manifest.dataset.name if manifest.dataset else None),
            ("retrain index", manifest.retrain_index),
            ("input", f"{manifest.preprocessing.image_size} px"),
            ("metrics", metrics or None),
            ("created", manifest.created),
        ],
    )


def lineage_tree(bases: Sequence[Any], manifest: Any, derived: Sequence[Any], names: Mapping[str, str]) -> Tree:
    """The snapshot below its base, that one's base and so on, and the snapshots fine-tuned from it below it."""

    def label(snapshot: Any, mark: str = "", style: str = "") -> Text:
        dataset = getattr(snapshot.dataset, "name", snapshot.dataset)
        index = snapshot.retrain_index
        parts = [dataset, None if index is None else f"r {index}", f"val {score_text(snapshot.accuracy)}"]
        return Text(
            "  ".join([names.get(snapshot.id, snapshot.id[:12]), *(part for part in parts if part)]) + mark, style=style
        )

    root = branch = None
    for snapshot in [*reversed(bases), manifest]:
        text = label(snapshot, "  ← this one", "bold") if snapshot is manifest else label(snapshot)
        branch = branch.add(text) if branch else Tree(text, guide_style="dim")
        root = root or branch
    for snapshot in derived[:MAX_ROWS]:
        branch.add(label(snapshot))
    if len(derived) > MAX_ROWS:
        branch.add(f"and {len(derived) - MAX_ROWS} more")
    return root


def blocks_table(manifest: Any, holders: Mapping[str, Sequence[str]], names: Mapping[str, str]) -> Table:
    """A snapshot's blocks, and which other snapshots hold each."""
    rows = []
    for block in manifest.blocks:
        others = sorted(names.get(one, one[:12]) for one in holders[block.digest] if one != manifest.id)
        shown = ", ".join(others[:MAX_NAMES]) + (
            f" and {len(others) - MAX_NAMES} more" if len(others) > MAX_NAMES else ""
        )
        rows.append((block.name, block.digest[:12], bytes_text(block.num_bytes), len(others), shown))
    columns = ["block", "digest", "bytes", "in others", "which"]
    return simple_table(columns, rows, numeric=["bytes", "in others"])


def differences_table(first: str, second: str, rows: Iterable[tuple[str, str | None, str | None]]) -> Table:
    """Two snapshots side by side, a line per block; a block that one of them lacks is an en dash."""
    shown = [(name, a and a[:12], b and b[:12], "same" if a == b else "differs") for name, a, b in rows]
    return simple_table(["block", first[:40], second[:40], ""], shown)


def findings_table(findings: Iterable[Any]) -> Table:
    """What a look at the machine found, a line each; the last column only where something would fail."""
    rows = [(one.what, one.found, one.problem or "") for one in findings]
    has_problems = any(problem for *_, problem in rows)
    return (
        simple_table(["", "found", "problem"], rows)
        if has_problems
        else simple_table(["", "found"], [row[:2] for row in rows])
    )


def datasets_table(summaries: Iterable[Any]) -> Table:
    """The datasets known or found, a line each; counts of what is not here are those of its makers."""
    rows = []
    for one in summaries:
        here = "damaged" if one.fault else "yes" if one.path else "no"
        counts, official = _counts(one.counts), _counts(one.official_counts)
        if one.fault or not one.page:
            note = one.fault or one.note
        elif one.path:
            note = f"of {official}" if official and official != counts else ""
        else:
            note = f"--download, {plural(one.num_files, 'file')}" if one.num_files else "by hand"
        mark = " [ImageNet overlap]" if one.overlap else ""
        rows.append((one.name, here, one.num_classes or "", counts or official, f"{note}{mark}".strip()))
    return simple_table(["dataset", "here", "classes", "train/val/test", "note"], rows, numeric=["classes"])


def sources_table(summaries: Iterable[Any]) -> Table:
    """Where the named datasets come from and on what terms, two lines each."""
    rows = [
        (one.name, "\n".join(filter(None, (one.page, one.licence, one.overlap and f"ImageNet overlap: {one.overlap}"))))
        for one in summaries
        if one.page
    ]
    return simple_table(["dataset", "where, and on what terms"], rows)


def dataset_line(root: Path, num_classes: int, counts: Mapping[str, int], num_ignored: int = 0) -> str:
    """A dataset on the disk in one line."""
    ignored = f"; {plural(num_ignored, 'file')} left out" if num_ignored else ""
    return f"{root}: {plural(num_classes, 'class', 'classes')}, train/val/test {_counts(counts)}{ignored}"


def class_counts_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Images per class and split: a line per class, or where there are many classes a line per split."""
    names = list(next(iter(counts.values()), ()))
    if len(names) <= MAX_ROWS:
        rows = [(name, *(counts[split][name] for split in counts)) for name in names]
        return simple_table(["class", *counts], rows, numeric=list(counts))
    rows = []
    for split, by_class in counts.items():
        fewest = sorted(names, key=lambda name, by_class=by_class: (by_class[name], name))[:MAX_FEWEST]
        sizes = by_class.values()
        shown = ", ".join(f"{name} {by_class[name]}" for name in fewest)
        rows.append((split, sum(sizes), min(sizes), f"{median(sizes):g}", max(sizes), shown))
    columns = ["split", "images", "per class: min", "median", "max", "fewest in"]
    return simple_table(columns, rows, numeric=columns[1:5])


def check_table(result: Any) -> Table:
    """What a look at a dataset found, a line each; only what there is something to say of."""
    num_good = result.num_images - len(result.bad)
    rows = [
        ("good images", f"{count_text(num_good)} of {count_text(result.num_images)}: {_tally(result.formats)}"),
        ("colours", _tally(result.modes)),
        ("width", _spread(result.width_px)),
        ("height", _spread(result.height_px)),
        ("EXIF rotation", f"{count_text(result.num_rotated)}; they are read upright"),
        ("small", f"{count_text(result.num_small)} with a side under 64 px"),
        ("same picture", _sameness(result)),
        ("dataset.json", f"promises train/val/test {_counts(result.recorded_counts or {})}: it was changed since"),
        ("ImageNet", _overlap(result)),
    ]
    silent = {
        "colours": not num_good,
        "width": not num_good,
        "height": not num_good,
        "EXIF rotation": not result.num_rotated,
        "small": not result.num_small,
        "dataset.json": result.recorded_counts is None,
        "ImageNet": not _overlap(result),
    }
    return simple_table(["", ""], [row for row in rows if not silent.get(row[0])])


def check_failures(result: Any) -> list[dict[str, str]]:
    """What is wrong with a dataset, a row each, leaks and bad files first; at most a few of a kind."""

    def told(kind: str, groups: Sequence[Any]) -> list[dict[str, str]]:
        rows = []
        for group in groups[:MAX_ROWS]:
            paths = [str(path.relative_to(result.root)) for path in group.paths]
            more = f" and {len(paths) - MAX_SAME_PATHS} more" if len(paths) > MAX_SAME_PATHS else ""
            shown = ", ".join(paths[:MAX_SAME_PATHS])
            rows.append({"where": str(result.root), "error": f"{kind}, the same {group.equal} in {shown}{more}"})
        return rows + _rest(groups)

    bad = [{"error": one.reason} for one in result.bad[:MAX_ROWS]] + _rest(result.bad)
    return [*bad, *told("leak between splits", result.leaks), *told("two classes", result.label_conflicts)]


def _rest(found: Sequence[Any]) -> list[dict[str, str]]:
    return [{"error": f"and {len(found) - MAX_ROWS} more; --json lists all"}] if len(found) > MAX_ROWS else []


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count_text(count)} {name}" for name, count in counts.items()) or "none"


def _spread(spread: Any) -> str:
    if spread is None:
        return ""
    if spread.min == spread.max:
        return f"{spread.min} px"
    return f"{spread.min} to {spread.max} px, median {spread.median:g}"


def _sameness(result: Any) -> str:
    """How many pictures are there more than once, the serious kind first."""
    kinds = [
        (len(result.leaks), "in more than one split: a leak"),
        (len(result.label_conflicts), "in more than one class"),
        (len(result.copies), "more than once in a class"),
    ]
    return "; ".join(f"{count_text(count)} {text}" for count, text in kinds if count) or "none twice"


def _overlap(result: Any) -> str:
    """What is shared with ImageNet: what is known of the dataset, and what its file names say."""
    names = [
        (result.num_imagenet_train_names, "ImageNet training images"),
        (result.num_imagenet_held_out_names, "ImageNet validation or test images"),
    ]
    all_files = plural(result.num_images, "file")
    called = [f"{count_text(count)} of {all_files} named as {kind}" for count, kind in names if count]
    if result.overlap and not called:
        called = ["no file named as an image of ImageNet"]
    return "; ".join(filter(None, (result.overlap, *called)))


def savings_line(stats: Mapping[str, int]) -> str:
    """What a store holds, and what copies of its snapshots would take."""
    copied, kept = stats["bytes_if_copied"], stats["bytes_on_disk"]
    held = f"{plural(stats['num_snapshots'], 'snapshot')} in {plural(stats['num_blocks'], 'block')}"
    saved = f"; copies would take {bytes_text(copied)} ({share_text(1 - kept / copied)} saved)" if copied else ""
    return f"Store: {held}, {bytes_text(kept)} on disk{saved}."


def verify_line(result: Mapping[str, Any]) -> str:
    """What was read, and how much of it is damaged."""
    read = f"{plural(result['num_snapshots'], 'snapshot')}, {plural(result['num_blocks'], 'block')}"
    damaged = f"{plural(len(result['damaged']), 'block')} and {plural(len(result['damaged_files']), 'other file')}"
    return f"{'ok' if result['ok'] else f'damaged: {damaged}'}; read {read}, {bytes_text(result['checked_bytes'])}"


def damage_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """What is damaged, a row each, with the snapshots that it hits."""
    rows = []
    for one in result["damaged"]:
        hit = ", ".join(snapshot[:12] for snapshot in one["snapshots"]) or "none"
        rows.append({"block": f"block {one['block']}", "error": f"{one['reason']}; snapshots hit: {hit}"})
    return [*rows, *result["damaged_files"]]


def gc_line(result: Mapping[str, int]) -> str:
    """What a clean-up of a store deleted and kept."""
    deleted = f"{plural(result['num_blocks_deleted'], 'block')} deleted ({bytes_text(result['deleted_bytes'])})"
    swept = plural(result["num_files_swept"], "stale file")
    return f"{deleted}, {result['num_blocks_kept']} kept, {swept} swept"


def _counts(counts: Mapping[str, int]) -> str:
    return "/".join(str(counts.get(split, 0)) for split in ("train", "val", "test")) if counts else ""
