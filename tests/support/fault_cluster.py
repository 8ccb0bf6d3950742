"""Three trials on two nodes with a pretended GPU each, one of which dies: `fault_cluster.py DIRECTORY`; prints JSON."""

import json
import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from raysnap.config.parts import ResourcesConfig
from raysnap.jobs.bases import store_base
from raysnap.store.store import Store
from raysnap.training.trial import Trial
from raysnap.tune.options import TrialOutcome
from raysnap.tune.run_trials import run_trials
from tests.support import fault_jobs

NODE = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 100_000_000}


def run(directory: Path) -> dict:
    """Which trials ended how, on which nodes they ran, and which node died."""
    os.environ["RAYSNAP_PRETEND_GPUS"] = "1"  # Ray's processes inherit it
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    node = cluster.add_node(**NODE)
    cluster.connect()
    cluster.wait_for_nodes()
    store = Store.open(directory / "store", create=True)
    store.set_ref("base", store_base(store, "random", "resnet18", 4, 0, fault_jobs.PREPROCESSING))
    doomed: list[str] = []
    ended: dict[str, str] = {}

    def on_epoch(trial: Trial, epoch: dict) -> None:
        places = [path.name.split("@") for path in directory.glob("*@*")]
        is_there = [trial.id, node.node_id] in places
        if not doomed and is_there and len({node_id for _, node_id in places}) == 2 and epoch["epoch"] >= 2:
            doomed.append(node.node_id)
            cluster.remove_node(node, allow_graceful=False)

    def on_end(outcome: TrialOutcome) -> None:
        ended[outcome.trial.id] = outcome.status if outcome.error is None else outcome.error

    run_trials(
        [fault_jobs.trial(f"trial-{number}") for number in range(3)],
        fault_jobs.train_job(directory),
        ResourcesConfig(gpus=1, cpus=0.5, max_failures=1),
        directory / "ray" / "trials",
        on_end=on_end,
        on_epoch=on_epoch,
    )
    places = [path.name.split("@") for path in directory.glob("*@*")]
    ray.shutdown()
    cluster.shutdown()
    return {"ended": ended, "places": places, "doomed": doomed}


if __name__ == "__main__":
    result = run(Path(sys.argv[1]))
    sys.stdout.write("\n" + json.dumps(result) + "\n")
