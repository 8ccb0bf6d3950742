"""Run Alsatian's own code on a CPU in this process: make its synthetic snapshots, or search them with one approach.

`peer_process.py CHECKOUT make|baseline|shift|mosix --dir DIR --snapshots N [--data DATA]`, started by `peer.py`.
CHECKOUT is github.com/hpides/alsatian, branch `reproducibility`, and stays as it is: what it lacks on a machine without
a GPU, its text models and a download of pretrained weights is arranged from here, and nothing that it measures is
replaced.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import random
import sys
import types
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

ARCHITECTURE = "resnet18"
WEIGHTS_FILE = "resnet18-f37072fd.pth"  # the name under which torch's hub keeps the pretrained weights
TEXT_PACKAGES = (
    "torchinfo",
    "transformers",
    "transformers.modeling_attn_mask_utils",
    "transformers.models",
    "transformers.models.resnet",
    "transformers.models.resnet.modeling_resnet",
    "psutil",
    "cpuinfo",
    "pkg_resources",
)
SECTION = "cpu"


def main() -> None:
    """Make the snapshots, or search them and print one JSON line."""
    options = parse_options()
    folder = options.dir.resolve()
    prepare(options.checkout.resolve(), folder)
    with redirect_stdout(sys.stderr):  # it prints its progress
        found = make(folder, options.snapshots) if options.task == "make" else search(folder, options)
    sys.stdout.write(json.dumps(found) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of Alsatian")
    parser.add_argument("task", choices=("make", "baseline", "shift", "mosix"), help="what to do")
    parser.add_argument("--dir", type=Path, required=True, help="folder of the snapshots")
    parser.add_argument("--snapshots", type=int, required=True, help="how many, the base among them")
    parser.add_argument("--data", type=Path, help="an ImageFolder with train and val")
    parser.add_argument("--loaders", type=int, default=0, help="processes that decode images")
    return parser.parse_args()


def prepare(checkout: Path, folder: Path) -> None:
    """Let the checkout's modules be imported, and compute on the CPU where they say `cuda`."""
    sys.path[0] = str(checkout)  # instead of this file's folder, whose `data` would hide the checkout's
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # its layers are pickled modules of its own
    os.environ["TORCH_HOME"] = str(folder / "hub")
    for name in TEXT_PACKAGES:
        sys.modules[name] = _Absent(name)
    import torch
    from global_utils import constants

    constants.CUDA = "cpu"
    torch.cuda.synchronize = lambda: None


class _Absent(types.ModuleType):
    """A package that image models do without: every name in it is an empty class."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def make(folder: Path, num_snapshots: int) -> list[str]:
    """Let Alsatian make its snapshots from a seeded base; return the files of their torchvision state dicts."""
    import torch
    from torchvision.models import resnet18

    random.seed(0)
    torch.manual_seed(0)
    base = resnet18().state_dict()
    weights = folder / "hub" / "hub" / "checkpoints" / WEIGHTS_FILE
    weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save(base, weights)

    from experiments.main_experiments.snapshots.synthetic.generate import RetrainDistribution
    from experiments.main_experiments.snapshots.synthetic.generate_set import (
        generate_snapshot_set,
        get_architecture_models,
    )

    place, distribution = str(folder / "theirs"), RetrainDistribution.TWENTY_FIVE_PERCENT
    # Some are retrained nowhere and equal others. As for its paper, a larger set is made, and the first of it are used.
    generate_snapshot_set(ARCHITECTURE, num_snapshots + num_snapshots // 4, distribution, place, reuse_allowed=True)
    snapshots, _ = get_architecture_models(place, distribution, num_snapshots, [ARCHITECTURE])
    if len(snapshots) < num_snapshots:
        raise SystemExit(f"peer_process: expected {num_snapshots} different snapshots, found {len(snapshots)}")
    exported = folder / "exported"
    exported.mkdir(exist_ok=True)
    names = [f"{number:02d}-{snapshot.state_dict_hash}.pth" for number, snapshot in enumerate(snapshots)]
    for name, snapshot in zip(names, snapshots, strict=True):
        torch.save(as_torchvision(torch.load(snapshot.state_dict_path), base), exported / name)
    for unused in (folder / "theirs").rglob("*-l-*.pt"):  # layers' parameters a second time, which no search reads
        unused.unlink()
    return [str(exported / name) for name in names]


def as_torchvision(features: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict of a chain of layers under torchvision's names, with the head of the base."""
    heads = ["conv1", "bn1", "relu", "maxpool", *(f"layer{stage}.{block}" for stage in range(1, 5) for block in (0, 1))]
    state = {name: tensor for name, tensor in base.items() if name.startswith("fc.")}
    for name, tensor in features.items():
        layer, _, rest = name.partition(".")
        state[f"{heads[int(layer)]}.{rest}"] = tensor
    if state.keys() != base.keys():
        raise SystemExit(f"peer_process: expected the parameters of {ARCHITECTURE}, found {sorted(features)[:5]}")
    return state


def search(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Search with the published settings; return its seconds by its own clock and its last ranking."""
    from experiments.main_experiments.model_search.experiment_args import ExpArgs
    from experiments.main_experiments.model_search.model_search_exp_synthetic import run_model_search

    caches = folder / "cache"
    caches.mkdir(exist_ok=True)
    data = options.data.resolve()
    config = configparser.ConfigParser()
    config[SECTION] = {
        "train_data": str(data / "train"),
        "test_data": str(data / "val"),
        "num_train_items": "0",  # all
        "num_test_items": "0",
        "num_workers": str(options.loaders),
        "batch_size": "128",
        "num_target_classes": str(sum(path.is_dir() for path in (data / "train").iterdir())),
        "persistent_caching_path": str(caches),
        "base_snapshot_save_path": str(folder / "theirs"),
        "num_models": str(options.snapshots),
        "distribution": "TWENTY_FIVE_PERCENT",
        "snapshot_set_string": ARCHITECTURE,
        "approach": options.task,
        "result_dir": str(folder),
        "benchmark_level": "END_TO_END",
        "default_cache_location": "CPU",
        "limit_fs_io": "false",
        "ssd_caching_active": "false",
        "cache_size": "10000000000",
        "trained_snapshots": "false",
        "hf_caching_path": "",
    }
    measured, ranking = run_model_search(ExpArgs(config, SECTION))
    return {"end_to_end_s": measured["end_to_end"], "ranking": [[score, name.split("-")[1]] for score, name in ranking]}


if __name__ == "__main__":
    main()
