"""Judge rankings of starts on the fine-tunes that `populations.py` ran: proxies, few-step fine-tunes, records, rules.

    .venv/bin/python benchmarks/judge_populations.py DIR

Each draw of each target is asked about on its own, by its training images alone. The truth is a start's test accuracy,
averaged over the draws that were fine-tuned. A ranker's figures are means over targets and draws: weighted Kendall tau
(scipy's) with the 95 % interval of resampled candidates; what the first and the best of the first five lose against the
best of all; what the first gains over the best base, and over the base that a search names as the choice without one.
Records are the fine-tunes of the other targets. Tables go to stderr; the last line, on stdout, is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from populations import RECIPES, STEPS, TARGETS, target_dir
from scipy.stats import weightedtau

from raysnap.config.choices import Proxy
from raysnap.search import search
from raysnap.search.candidates import count_parameters, name_of
from raysnap.search.placing import root_of
from raysnap.search.standings import expect, join, places
from raysnap.store.index import SnapshotSummary
from raysnap.store.records import Recipe, StartFacts, StartRecord, TargetFacts, table_of
from raysnap.store.store import Store

NUM_RESAMPLES = 200
FIVE = 5
Values = dict[str, float]  # by snapshot; larger is better
Key = tuple[str, int]  # target and draw


@dataclass(frozen=True)
class Figures:
    """What a ranker is worth."""

    tau: float
    low: float
    high: float
    regret: float
    regret_of_five: float
    gain: float
    gain_over_largest: float
    num_questions: int


def main() -> int:
    """Print a table per question, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dir", type=Path, help="the folder of `populations.py`")
    parser.add_argument("--where", help="which snapshots are candidates, as in `raysnap search`")
    options = parser.parse_args()
    folder = options.dir
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    store = Store.open(folder / "store")
    summaries = {summary.id: summary for summary in store.summaries(options.where)}
    truths = truth_of(rows, set(summaries))
    keys = [(target, draw) for target, draws in truths.items() for draw in draws]
    means = {target: mean_of(draws) for target, draws in truths.items()}
    scores, seconds = score_all(folder, store, keys, options.where)
    rankers = {name: {key: scores[name][key] for key in keys} for name in scores}
    rankers |= combine(rankers, summaries, store, means)
    rankers |= few_steps(rows, keys, set(summaries)) | rules(summaries, keys) | other_draws(truths)
    rankers |= last_rung(rankers)
    figures = {name: judge(by_key, means, summaries) for name, by_key in rankers.items() if by_key}
    show(figures, means)
    document = {
        "num_candidates": len(summaries),
        "rankers": {name: one.__dict__ for name, one in figures.items()},
        "recipes": show_recipes(rows, summaries),
        "seconds_per_question": seconds,
        "targets": {target: spread_of(values, summaries) for target, values in means.items()},
    }
    sys.stdout.write(json.dumps(document) + "\n")
    return 0


def say(text: str) -> None:
    """Write progress to stderr."""
    sys.stderr.write(f"{text}\n")


def truth_of(rows: list[dict[str, Any]], snapshots: set[str]) -> dict[str, dict[int, Values]]:
    """Return the test accuracies of these snapshots by target and draw, of draws on which every one was fine-tuned."""
    found: dict[str, dict[int, Values]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        run = row["run"]
        if run["kind"] == "truth" and run["start"] in snapshots:
            found[run["target"]][run["draw"]][run["start"]] = row["test_accuracy"]
    whole = {
        target: {draw: values for draw, values in found[target].items() if set(values) == snapshots}
        for target in TARGETS
    }
    return {target: draws for target, draws in whole.items() if draws}


def mean_of(draws: Mapping[int, Values]) -> Values:
    """Return the mean over draws."""
    first = next(iter(draws.values()))
    return {snapshot: float(np.mean([values[snapshot] for values in draws.values()])) for snapshot in first}


def score_all(
    folder: Path, store: Store, keys: list[Key], where: str | None
) -> tuple[dict[str, dict[Key, Values]], dict[str, float]]:
    """Return every proxy's scores on all training items, and the ranks of the default search; and their seconds.

    Test images are left alone, as in a finetune; scores are cross-validated on what is trained on and held out.
    """
    found: dict[str, dict[Key, Values]] = defaultdict(dict)
    took_s: dict[str, list[float]] = defaultdict(list)
    for key in keys:
        root = target_dir(folder, *key)
        asked: dict[str, Any] = {
            "spares_test": True,
            "use_records": False,
            "seed": key[1],
            "method": "nested",
            "where": where,
        }
        for proxy in get_args(Proxy):
            started_s = time.perf_counter()
            result = search(store, root, proxy=proxy, tolerance=0.0, feature_cache_bytes=2**30, **asked)
            took_s[proxy].append(time.perf_counter() - started_s)
            assert len({line.num_scored for line in result.ranking}) == 1 and not result.skipped
            found[proxy][key] = {line.snapshot: line.score for line in result.ranking}
        started_s = time.perf_counter()
        result = search(store, root, **asked)
        took_s["search"].append(time.perf_counter() - started_s)
        found["search"][key] = {line.snapshot: -float(line.rank) for line in result.ranking}
        say(f"{key}: scored; {result.ranking[0].name} first")
    return found, {name: round(float(np.mean(values)), 2) for name, values in took_s.items()}


def combine(
    rankers: Mapping[str, Mapping[Key, Values]],
    summaries: Mapping[str, SnapshotSummary],
    store: Store,
    means: Mapping[str, Values],
) -> dict[str, dict[Key, Values]]:
    """Return joined ranks: of several proxies, and of a proxy with records of the other targets."""
    found: dict[str, dict[Key, Values]] = defaultdict(dict)
    bases = {one.id: one.base for one in store.lineages()}
    known = [(id_, one.architecture, root_of(id_, bases)) for id_, one in summaries.items()]
    table = table_of(
        StartRecord(
            start=StartFacts(snapshot=id_, architecture=architecture, lineage=(root,)),
            dataset=TargetFacts(name=target, digest=target, num_classes=2, num_train=0, num_val=0, num_test=0),
            recipe=Recipe(image_size=64, seed=0, train={"epochs": 1}),
            num_epochs=1,
            metrics={"val_accuracy": values[id_]},
        )
        for target, values in means.items()
        for id_, architecture, root in known
    )
    for key in rankers["linear"]:
        for names in (("linear", "logme"), ("linear", "logme", "knn"), ("linear", "logme", "knn", "hscore")):
            found[" + ".join(names)][key] = joined([rankers[name][key] for name in names])
        scores_S = np.array([rankers["linear"][key][id_] for id_ in summaries])
        alone, beside = expect(table, key[0], known), expect(table, key[0], known, scores_S)
        found["records"][key] = dict(zip(summaries, alone.standing_S.tolist(), strict=True))
        found["linear + records"][key] = dict(zip(summaries, join(scores_S, beside).tolist(), strict=True))
    return found


def joined(parts: list[Values]) -> Values:
    """Return the mean of the places by several rankers."""
    mean_S = np.mean([places(np.array([part[id_] for id_ in parts[0]])) for part in parts], axis=0)
    return dict(zip(parts[0], mean_S.tolist(), strict=True))


def few_steps(rows: list[dict[str, Any]], keys: list[Key], snapshots: set[str]) -> dict[str, dict[Key, Values]]:
    """Return what fine-tunes of one and three epochs say of starts: by accuracy and by loss on what was held out."""
    found: dict[str, dict[Key, Values]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        run = row["run"]
        key = (run["target"], run["draw"])
        if run["kind"] != "steps" or key not in keys or run["start"] not in snapshots:
            continue
        for epoch in (1, len(row["epochs"])):
            entry = row["epochs"][epoch - 1]
            found[f"{run['recipe']}, {epoch} epochs: accuracy"][key][run["start"]] = entry["val_accuracy"]
            found[f"{run['recipe']}, {epoch} epochs: loss"][key][run["start"]] = -entry["val_loss"]
    return {
        name: {key: values for key, values in by_key.items() if set(values) == snapshots}
        for name, by_key in found.items()
    }


def last_rung(rankers: Mapping[str, Mapping[Key, Values]], num_kept: int = 10) -> dict[str, dict[Key, Values]]:
    """Return orders in which few steps decide among the first by `linear`, and `linear` among the others."""
    found: dict[str, dict[Key, Values]] = defaultdict(dict)
    for name in [name for name in rankers if name.split(",")[0] in STEPS and name.endswith("loss")]:
        for key, by_steps in rankers[name].items():
            by_linear = rankers["linear"][key]
            order = sorted(by_linear, key=lambda id_: -by_linear[id_])
            kept = sorted(order[:num_kept], key=lambda id_: -by_steps[id_])
            found[f"linear, then {name}"][key] = {id_: -float(n) for n, id_ in enumerate(kept + order[num_kept:])}
            found[f"linear + {name}"][key] = joined([by_linear, by_steps])
    return found


def rules(summaries: Mapping[str, SnapshotSummary], keys: list[Key]) -> dict[str, dict[Key, Values]]:
    """Return rankings that look at no item."""
    rankings = {
        "always a base": {id_: float(one.base is None) for id_, one in summaries.items()},
        "most blocks retrained": {id_: float(one.retrain_index or 0) for id_, one in summaries.items()},
        "accuracy on its own dataset": {id_: one.accuracy or 0.0 for id_, one in summaries.items()},
        "largest network": {id_: float(count_parameters(one.architecture)) for id_, one in summaries.items()},
    }
    return {name: dict.fromkeys(keys, values) for name, values in rankings.items()}


def other_draws(truths: Mapping[str, Mapping[int, Values]]) -> dict[str, dict[Key, Values]]:
    """Return what real fine-tunes on one draw say of those on the others: about the best that is possible."""
    return {"a whole fine-tune": {(target, draw): draws[draw] for target, draws in truths.items() for draw in draws}}


def judge(
    by_key: Mapping[Key, Values], means: Mapping[str, Values], summaries: Mapping[str, SnapshotSummary]
) -> Figures:
    """Return a ranker's figures; candidates that it holds equal are taken in turns."""
    rng = np.random.default_rng(0)
    ids = list(summaries)
    is_base_S = np.array([summaries[id_].base is None for id_ in ids])
    parameters_S = np.array([count_parameters(summaries[id_].architecture) for id_ in ids])
    pairs, losses = [], []
    for (target, _), values in by_key.items():
        ours_S, real_S = np.array([values[id_] for id_ in ids]), np.array([means[target][id_] for id_ in ids])
        pairs.append((ours_S, real_S))
        largest = real_S[is_base_S][np.argmax(parameters_S[is_base_S])]
        for _ in range(20):
            order = np.lexsort((rng.random(len(ids)), -ours_S))
            first, five = real_S[order[0]], real_S[order[:FIVE]].max()
            best = real_S.max()
            losses.append((best - first, best - five, first - real_S[is_base_S].max(), first - largest))
    resampled = [mean_tau(pairs, rng.integers(len(ids), size=len(ids))) for _ in range(NUM_RESAMPLES)]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Figures(
        mean_tau(pairs, np.arange(len(ids))), float(low), float(high), *np.mean(losses, axis=0).tolist(), len(pairs)
    )


def mean_tau(pairs: list[tuple[np.ndarray, np.ndarray]], chosen: np.ndarray) -> float:
    """Return the mean weighted tau of these candidates; a ranker that holds all equal has none, which counts as 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taus = [weightedtau(ours_S[chosen], real_S[chosen]).statistic for ours_S, real_S in pairs]
    return float(np.mean(np.nan_to_num(taus)))


def spread_of(values: Values, summaries: Mapping[str, SnapshotSummary]) -> dict[str, Any]:
    """Return a target's best and worst start, and its bases."""
    order = sorted(values, key=lambda id_: -values[id_])
    return {
        "best": [(name_of(summaries[id_]), round(values[id_], 4)) for id_ in order[:3]],
        "worst": round(values[order[-1]], 4),
        "bases": {name_of(one): round(values[id_], 4) for id_, one in summaries.items() if one.base is None},
    }


def show(figures: Mapping[str, Figures], means: Mapping[str, Values]) -> None:
    """Print the table of rankers, best first."""
    say(f"\n{len(means)} targets: {', '.join(means)}")
    say(f"{'ranker':52} {'tau':>6} {'95 %':>16} {'regret':>7} {'of five':>7} {'gain':>7} {'largest':>7}")
    for name, one in sorted(figures.items(), key=lambda item: -item[1].tau):
        say(
            f"{name:52} {one.tau:6.2f} {one.low:7.2f} to {one.high:5.2f} {one.regret:7.3f} {one.regret_of_five:7.3f} "
            f"{one.gain:7.3f} {one.gain_over_largest:7.3f}"
        )


def show_recipes(rows: list[dict[str, Any]], summaries: Mapping[str, SnapshotSummary]) -> dict[str, Any]:
    """Print and return the mean test accuracy of each recipe from each base, over the draws that all recipes had."""
    found: dict[str, dict[tuple[str, str, int], float]] = {name: {} for name in RECIPES}
    for row in rows:
        run = row["run"]
        if run["kind"] == "recipes" and run["recipe"] in found:
            found[run["recipe"]][run["start"], run["target"], run["draw"]] = row["test_accuracy"]
    found = {name: values for name, values in found.items() if values}
    common = sorted(set.intersection(*(set(values) for values in found.values()))) if found else []
    starts = sorted({start for start, *_ in common})
    document: dict[str, Any] = {"num_fine_tunes": len(common)}
    for name, values in sorted(
        found.items(), key=lambda item: -float(np.mean([item[1][one] for one in common] or [0]))
    ):
        document[name] = {
            "mean": float(np.mean([values[one] for one in common])),
            "by_start": {
                name_of(summaries[start]): float(np.mean([values[one] for one in common if one[0] == start]))
                for start in starts
            },
            "by_target": {
                target: float(np.mean([values[one] for one in common if one[1] == target])) for target in TARGETS
            },
        }
        by_target = " ".join(f"{value:8.3f}" for value in document[name]["by_target"].values())
        say(f"{name:24} {document[name]['mean']:.3f}  {by_target}  {document[name]['by_start']}")
    return document


if __name__ == "__main__":
    sys.exit(main())
