"""Judge rankings of starts on public fine-tuning results: records alone, a proxy alone, and both joined.

    python benchmarks/transfergraph.py FOLDER

FOLDER holds `records.csv`, `transferability_score_records.csv` and `model_config_dataset.csv` of TransferGraph
(https://github.com/TransferGraph/transfergraph): fine-tunes of 180 image models on 13 datasets, and the scores of two
proxies on eight of these. One dataset at a time is asked about: its own fine-tunes are left out of the records, and are
the truth. A model's type stands for its architecture, its exact network for its lineage. What is measured is the code
of `raysnap search` and `raysnap recommend`; weighted tau is scipy's, regret is the accuracy lost by taking the first.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from blake3 import blake3
from scipy.stats import weightedtau

from raysnap.search.standings import expect, join
from raysnap.store.records import Recipe, RecordTable, StartFacts, StartRecord, TargetFacts, table_of

PROXIES = {"LOG_ME": "logme", "REG_H_SCORE": "hscore"}
RANKERS = ("records", "proxy", "joined")
GOALS = {"tau": 0.50, "regret": 0.01, "below_proxy": 0.02}


def main(arguments: list[str] | None = None) -> int:
    """Print a table per proxy, and the means as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    kinds = {row["model"]: (row["model_type"], network_of(row)) for row in rows_of(folder / "model_config_dataset.csv")}
    records = list(read_records(folder, kinds))
    table, truth = table_of(records), truth_of(records)
    scores = read_scores(folder)
    sys.stderr.write(f"{len(records)} fine-tunes of {len(table.starts)} models on {len(truth)} datasets\n")
    summary = {}
    for metric, proxy in PROXIES.items():
        results = {
            dataset: judge(table, truth[dataset], dataset, known, kinds) for dataset, known in scores[metric].items()
        }
        summary[proxy] = show(proxy, results)
    say(json.dumps(summary))
    return 0


def say(line: str) -> None:
    """Write a line of the result."""
    sys.stdout.write(f"{line}\n")


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def network_of(row: dict[str, str]) -> str:
    """Return what two models have in common whose networks are the same."""
    return "/".join((row["architectures"], row["number_of_parameters"], row["input_shape"]))


def id_of(name: str) -> str:
    """Return a name as a snapshot's id."""
    return blake3(name.encode()).hexdigest()


def read_records(folder: Path, kinds: dict[str, tuple[str, str]]) -> Iterator[StartRecord]:
    """Yield each fine-tune that has an accuracy."""
    for row in rows_of(folder / "records.csv"):
        if not row["eval_accuracy"]:
            continue
        architecture, network = kinds.get(row["model"], ("unknown", "unknown"))
        yield StartRecord(
            start=StartFacts(
                snapshot=id_of(row["model"]), architecture=architecture or "unknown", lineage=(id_of(network),)
            ),
            dataset=TargetFacts(
                name=row["finetuned_dataset"],
                digest=row["finetuned_dataset"],
                num_classes=2,
                num_train=0,
                num_val=0,
                num_test=0,
            ),
            recipe=Recipe(image_size=224, seed=0, train={"epochs": int(float(row["epochs"]))}),
            num_epochs=int(float(row["epochs"])),
            metrics={"val_accuracy": float(row["eval_accuracy"])},
        )


def truth_of(records: list[StartRecord]) -> dict[str, dict[str, float]]:
    """Return the best accuracy of each start on each dataset."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for record in records:
        best = found[record.dataset.name]
        accuracy = record.metrics["val_accuracy"]
        best[record.start.snapshot] = max(accuracy, best.get(record.start.snapshot, accuracy))
    return found


def read_scores(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return the scores by proxy, dataset and model; of models that both proxies scored there."""
    found: dict[str, dict[str, dict[str, float]]] = {metric: defaultdict(dict) for metric in PROXIES}
    for row in rows_of(folder / "transferability_score_records.csv"):
        metric = (row["metric"] or "").rpartition(".")[2]
        if metric in PROXIES and row["score"]:
            found[metric][row["target_dataset"]][row["model_name"]] = float(row["score"])
    first, second = (found[metric] for metric in PROXIES)
    for dataset in first:
        common = first[dataset].keys() & second[dataset].keys()
        for by_dataset in (first, second):
            by_dataset[dataset] = {name: value for name, value in by_dataset[dataset].items() if name in common}
    return found


def judge(
    table: RecordTable,
    truth: dict[str, float],
    dataset: str,
    scores: dict[str, float],
    kinds: dict[str, tuple[str, str]],
) -> dict[str, tuple[float, float]]:
    """Return the weighted tau and the regret of each ranker on one dataset."""
    names = sorted(name for name in scores if id_of(name) in truth)
    scores_S = np.array([scores[name] for name in names])
    truth_S = np.array([truth[id_of(name)] for name in names])
    snapshots = [(id_of(name), kinds[name][0] or "unknown", id_of(kinds[name][1])) for name in names]
    alone, beside = expect(table, dataset, snapshots), expect(table, dataset, snapshots, scores_S)
    by_ranker = {"records": alone.standing_S, "proxy": scores_S, "joined": join(scores_S, beside)}
    return {
        name: (
            float(weightedtau(values_S, truth_S, rank=None).statistic),
            float(truth_S.max() - truth_S[np.argmax(values_S)]),
        )
        for name, values_S in by_ranker.items()
    }


def show(proxy: str, results: dict[str, dict[str, tuple[float, float]]]) -> dict[str, object]:
    """Print one proxy's table and return its means."""
    say(f"\n{proxy:28} " + " ".join(f"{name + ' tau':>12} {'regret':>7}" for name in RANKERS))
    for dataset, found in sorted(results.items()):
        say(f"{dataset:28} " + " ".join(f"{found[name][0]:12.3f} {found[name][1]:7.3f}" for name in RANKERS))
    means = {name: np.mean([found[name] for found in results.values()], axis=0).tolist() for name in RANKERS}
    say(f"{'mean':28} " + " ".join(f"{means[name][0]:12.3f} {means[name][1]:7.4f}" for name in RANKERS))
    below = max(found["proxy"][0] - found["joined"][0] for found in results.values())
    tau, regret = means["joined"]
    is_met = tau >= GOALS["tau"] and regret <= GOALS["regret"] and below <= GOALS["below_proxy"]
    say(f"joined is at most {below:.3f} below the proxy; goals {'met' if is_met else 'not met'}: {GOALS}")
    return {name: {"tau": value[0], "regret": value[1]} for name, value in means.items()} | {"most_below": below}


if __name__ == "__main__":
    sys.exit(main())
