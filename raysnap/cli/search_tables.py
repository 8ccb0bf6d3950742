"""What search and bench print: tables and lines made from results."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from raysnap.cli.console import MAX_NAMES, MAX_ROWS, simple_table
from raysnap.humanize import bytes_text, count_text, flops_text, is_known, plural, score_text, seconds_text, share_text
from raysnap.runs.questions import gain_text

MAX_INPUTS = 4

if TYPE_CHECKING:
    from raysnap.bench.cells import Cell
    from raysnap.bench.estimates import CellWork
    from raysnap.config.folders import StorePath
    from raysnap.search.plan.outline import Branch


def ranking_table(result: Mapping[str, Any], max_rows: int = MAX_ROWS) -> Table:
    """Return the first rows of a ranking, each score with its interval and the items that it rests on."""
    shown = result["ranking"][:max_rows]
    has_records = bool(result.get("records"))
    columns: dict[str, list[Any]] = {
        "": [entry["rank"] for entry in shown],
        "snapshot": [entry["name"] for entry in shown],
        "score": [score_text(entry["score"]) for entry in shown],
        "95 % interval": [interval_text(entry.get("low"), entry.get("high")) for entry in shown],
        "items": [entry.get("num_scored") for entry in shown],
        "standing": [standing_text(entry["standing"]) for entry in shown] if has_records else [],
        " ": [_standing(entry, has_records=has_records) for entry in shown],
        "trained on": [_origin(entry) for entry in shown],
        "id": [entry["snapshot"][:12] for entry in shown],
    }
    columns = {title: values for title, values in columns.items() if values}
    numeric = ["", "score", "items", "standing"]
    return simple_table(list(columns), list(zip(*columns.values(), strict=True)), numeric=numeric)


def interval_text(low: float | None, high: float | None) -> str | None:
    """Return an interval such as `0.780 to 0.890`; None where it is not known."""
    return f"{score_text(low)} to {score_text(high)}" if is_known(low) and is_known(high) else None


def standing_text(standing: float | None) -> str | None:
    """Return the place among starts that records let expect."""
    return None if standing is None else f"{standing:.2f}"


def _standing(entry: Mapping[str, Any], *, has_records: bool) -> str:
    """Say how a line of a ranking compares with the best: by the proxy, where records count as well."""
    by_proxy = " by score" if has_records else ""
    if entry.get("proxy_rank", entry["rank"]) == 1:
        return f"best{by_proxy}"
    if entry["within_tolerance"]:
        return f"as good{by_proxy}, as far as is known"
    return f"tied with the best{by_proxy}" if entry["tied_with_best"] else ""


def _origin(entry: Mapping[str, Any]) -> str | None:
    """Return what a snapshot was trained on, marked where that is the dataset asked about."""
    dataset: str | None = entry.get("dataset")
    return f"{dataset} (this very one)" if entry.get("is_trained_on_it") else dataset


def next_lines(result: Mapping[str, Any], store_dir: StorePath, data: str, data_dir: Path) -> str:
    """Return the next commands to run after a ranking, with the first snapshot's id."""
    snapshot = result["ranking"][0]["snapshot"][:12]
    store = f"--store {shlex.quote(str(store_dir))}"
    folder = f" --data-dir {shlex.quote(str(data_dir))}" if str(data_dir) != "data" else ""
    return "\n".join(
        [
            "Next:",
            f"  raysnap finetune --data {shlex.quote(data)}{folder} {store} --from {snapshot}",
            f"  raysnap store export {snapshot} {store} --to {snapshot}.safetensors",
        ]
    )


def search_lines(result: Mapping[str, Any]) -> str:
    """Say below a ranking how long the search took, how near its lower bound that is, and what it gained."""
    timings_s, static, num_ranked = result["timings_s"], result["static_baseline"], len(result["ranking"])
    lines = [f"{plural(result['num_candidates'], 'candidate')} by {result['method']}, {timings_line(timings_s)}"]
    lines.append(read_line(result["data"]))
    if result.get("answered"):
        lines.append(answered_line(result))
    elif not result["work"]["flops"]:
        lines.append("All features came from the feature cache of earlier searches")
    elif result["bound_s"]:
        starts_s = sum(timings_s.get(part, 0.0) for part in ("start", "start_workers"))
        ratio = (timings_s["total"] - starts_s) / result["bound_s"]
        lines.append(
            f"{ratio:.2f}\u00a0× the lower bound of {seconds_text(result['bound_s'])} for this work on this machine"
        )
    if result["expected_loss"] is not None:
        lines.append(loss_line(result))
    if result.get("records"):
        lines.append(records_line(result["records"]))
    if result["narrowing"]:
        lines.append(narrowing_line(result["narrowing"]))
    if len(result["inputs"]) > 1:
        lines.append(inputs_line(result))
    if static:
        rank = f"rank {static['rank']} of {num_ranked}, score {score_text(static['score'])}"
        lines.append(f"Without a search, the choice would be the largest base snapshot, {static['name']}: {rank}")
    if gain := result.get("gain"):
        lines.append(gain_text(gain))
    return "\n".join(lines)


def answered_line(result: Mapping[str, Any]) -> str:
    """Say that an earlier search answered the same question, when, and how long that took."""
    took_s = result["forecast"]["came"]["timings_s"]["total"]
    return (
        f"This is the answer to the same question of {result['answered']}, which took {seconds_text(took_s)}; "
        "--feature-cache 0 searches again"
    )


def overrun_line(total_s: float, budget_s: float) -> str:
    """Say by how much a search took longer than its time budget; nothing where it did not."""
    if total_s <= budget_s:
        return ""
    return (
        f"The time budget of {seconds_text(budget_s)} was exceeded by {seconds_text(total_s - budget_s)}: a search "
        "starts, reads blocks and tries every candidate once in any case"
    )


def records_line(records: Mapping[str, Any]) -> str:
    """Say how much of the rank came from what fine-tunes on other datasets came to."""
    return (
        f"{share_text(records['share'])} of the rank comes from {plural(records['num_records'], 'fine-tune')} on "
        f"{plural(records['num_datasets'], 'other dataset')}, the rest from the score; --no-records leaves them out"
    )


def read_line(account: Mapping[str, Any]) -> str:
    """Say how many images of a dataset were read, and how many files were not that someone may miss."""
    counts = ", ".join(f"{split} {count_text(count)}" for split, count in account["num_images"].items())
    num_missed = sum(one["num_files"] for one in account["left_out"] if not one["is_expected"])
    left_out = f"; {plural(num_missed, 'file')} left out" if num_missed else ""
    bad = f"; {plural(len(account['bad']), 'bad image')}" if account["bad"] else ""
    noun = account.get("kind", "images")[:-1]
    num_items = plural(sum(account["num_images"].values()), noun)
    return f"{num_items} of {account['dataset']}: {counts}{left_out}{bad}"


def loss_line(result: Mapping[str, Any]) -> str:
    """Say what naming the winner may lose, who is as good, and why the search ended."""
    num_as_good = sum(entry["within_tolerance"] for entry in result["ranking"]) - 1
    reason = {
        "tolerance": "within the tolerance",
        "no_gain": "more items would not pay",
        "all_items": "all items are used",
        "time_budget": "the time budget allows no more",
    }[result["stopped"]]
    as_good = f"; {plural(num_as_good, 'other is', 'others are')} as good, as far as is known" if num_as_good else ""
    winner = "first by score" if result.get("records") else "winner"
    return f"Expected loss of the {winner} on new items: {result['expected_loss']:.3f}, {reason}{as_good}"


def narrowing_line(narrowing: Mapping[str, Any]) -> str:
    """Say how many snapshots were left out, of how many kinds, and what that is expected to cost."""
    num_left_out, num_kinds = narrowing["num_left_out"], sum(group["num_left_out"] > 0 for group in narrowing["groups"])
    chosen = f"Chosen from {plural(narrowing['num_candidates'], 'snapshot')}"
    if not num_left_out:
        return f"{chosen}: the others differ in their heads only"
    line = f"{chosen}, {count_text(num_left_out)} of them, of {plural(num_kinds, 'kind')}, left out"
    if narrowing["expected_loss"] is None:
        return line
    return f"{line}: the best of these is expected to score {narrowing['expected_loss']:.3f} more, by its relatives"


def inputs_line(result: Mapping[str, Any]) -> str:
    """Say that candidates saw images in different ways, and what would even that out."""
    groups = result["inputs"]
    size_only = len({group["image_size"] for group in groups}) == len(groups)
    ways = [
        f"{plural(group['num_candidates'], 'candidate')} at {_size_text(group)}"
        + ("" if size_only else f" ({_way_text(group)})")
        for group in groups[:MAX_INPUTS]
    ]
    ways += [f"{len(groups) - MAX_INPUTS} more"] if len(groups) > MAX_INPUTS else []
    even = result["even_image_size"]
    advice = f"; --image-size {even} evens them" if even else "; no --image-size evens them, --where picks one kind"
    return f"Candidates saw items in different ways and share no blocks across these: {', '.join(ways)}{advice}"


def _size_text(group: Mapping[str, Any]) -> str:
    return plural(group["image_size"], "token") if group["mean"] is None else f"{group['image_size']}\u00a0px"


def _way_text(group: Mapping[str, Any]) -> str:
    if group["mean"] is None:
        return str(group["text"])
    side = "shorter side" if group["resize_mode"] == "shorter_side" else "both sides"
    return f"{side} {group['resize_size']}\u00a0px, {group['interpolation']}, mean {list(group['mean'])}"


def rungs_table(rungs: Sequence[Mapping[str, Any]]) -> Table:
    """Return what each rung of a search did."""
    rows = [
        (
            number,
            rung["num_train"],
            rung["num_test"],
            rung["num_candidates"],
            rung["num_kept"],
            "" if rung["expected_loss"] is None else f"{rung['expected_loss']:.3f}",
            flops_text(rung["flops"]),
            count_text(rung["block_item_passes"]),
            bytes_text(rung["block_bytes_read"]),
            seconds_text(rung["total_s"]),
        )
        for number, rung in enumerate(rungs, start=1)
    ]
    columns = [
        "rung",
        "train",
        "test",
        "candidates",
        "kept",
        "expected loss",
        "compute",
        "block passes",
        "read",
        "time",
    ]
    return simple_table(columns, rows, numeric=columns)


def forecast_table(forecast: Mapping[str, Any], taken: str) -> Table:
    """Return what each method was forecast to take, stage by stage, and what came."""
    columns = ["", "start", "reading blocks", "decoding", "inference", "probes", "total", "image-forwards", "rungs"]
    rows = [(f"forecast: {one['method']}", *_forecast_cells(one)) for one in forecast["methods"]]
    rows.append((f"came: {taken}", *_forecast_cells(forecast["came"])))
    return simple_table(columns, rows, numeric=columns[1:])


def forecast_line(forecast: Mapping[str, Any], taken: str) -> str:
    """Say which method was taken, and why."""
    return f"`{taken}` was taken: {forecast['reason']}."


def _forecast_cells(one: Mapping[str, Any]) -> tuple[Any, ...]:
    stages = ("start", "load_blocks", "decode", "inference", "proxy", "total")
    times = (seconds_text(one["timings_s"][stage]) for stage in stages)
    return *times, count_text(round(one["image_forwards"])), len(one["rungs"])


def prefix_tree(branches: Sequence[Branch], title: str) -> Tree:
    """Return a search's prefix tree: blocks, digests, how many candidates share them, share of the compute."""
    root = Tree(Text(title, style="bold"), guide_style="dim")
    stack = [(root, branch) for branch in reversed(branches)]
    while stack:
        above, branch = stack.pop()
        drawn = above.add(_branch_text(branch, is_root=above is root))
        stack.extend((drawn, below) for below in reversed(branch.branches))
    return root


def _branch_text(branch: Branch, *, is_root: bool) -> Text:
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
    """Compare a benchmark's cells: how long each took, against `baseline` on its question, and its winner.

    Where `baseline` did not run, speed-ups are against the slowest, as in reports.
    """
    axes = [axis for axis in _CELL_AXES if axis[0] != "method" and len({cell[axis[0]] for cell in cells}) > 1]
    questions = [tuple(cell[key] for key, *_ in _CELL_AXES if key != "method") for cell in cells]
    against_s: dict[tuple[Any, ...], float] = {}
    is_settled: set[tuple[Any, ...]] = set()
    for question, cell in zip(questions, cells, strict=True):
        if cell["method"] == "baseline":
            against_s[question] = cell["median_s"]
            is_settled.add(question)
        elif question not in is_settled:
            against_s[question] = max(against_s.get(question, 0.0), cell["median_s"])
    spreads = [f"± {share_text(c['iqr_s'] / 2 / c['median_s'])}" if c["num_done"] > 1 else "" for c in cells]
    columns = {title: [text(cell[key]) for cell in cells] for key, title, text in axes} | {
        "method": [cell["method"] for cell in cells],
        "time": [seconds_text(cell["median_s"]) for cell in cells],
        "spread": spreads if any(spreads) else [],
        "speed-up": [
            f"{against_s[question] / cell['median_s']:.1f}×" for question, cell in zip(questions, cells, strict=True)
        ],
        "compute": [flops_text(cell["flops"]) for cell in cells],
        "block passes": [count_text(cell["block_item_passes"]) for cell in cells],
        "from disk": [bytes_text(cell["disk_bytes_read"]) for cell in cells],
        "winner": [cell["best"] for cell in cells],
        "score": [score_text(cell["best_score"]) for cell in cells],
        "of items": [cell.get("best_num_scored") for cell in cells],
        "noise": [_noise(cell) for cell in cells] if any(cell["is_noisy"] for cell in cells) else [],
    }
    columns = {title: values for title, values in columns.items() if any(value is not None for value in values)}
    numeric = [
        "of items",
        "time",
        "spread",
        "speed-up",
        "compute",
        "block passes",
        "from disk",
        "score",
        "image size",
        "budget",
    ]
    return simple_table(list(columns), list(zip(*columns.values(), strict=True)), numeric=numeric)


def _noise(cell: Mapping[str, Any]) -> str:
    """Say in a few words why a cell's times are unreliable; its rows hold all reasons."""
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
    """Say for each cell whose times are unreliable why: the first reason, and how many more there are."""
    noisy = [(cell["cell"], cell["noise"]) for cell in cells if cell["is_noisy"]]
    lines = [
        f"{name}: {noise[0]}{f' (and {len(noise) - 1} more)' if len(noise) > 1 else ''}"
        for name, noise in noisy[:MAX_ROWS]
    ]
    if len(noisy) > MAX_ROWS:
        lines.append(f"and {plural(len(noisy) - MAX_ROWS, 'more cell')}; results.jsonl has all")
    return "\n".join(lines)


def cells_table(cells: Iterable[Cell], works: Iterable[CellWork | None]) -> Table:
    """Return a benchmark's planned cells and what one run of each will compute; `~` marks an average."""
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
    """Say where a search's time went, the largest part first."""
    parts = sorted(((value, name) for name, value in timings_s.items() if name != "total"), reverse=True)
    shown = ", ".join(f"{name.replace('_', ' ')} {seconds_text(value)}" for value, name in parts if value > 0)
    return f"{seconds_text(timings_s['total'])} in total: {shown}"
