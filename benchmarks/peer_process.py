"""Run Alsatian's own code on a CPU in this process: make its synthetic snapshots, or search them with one approach.

`peer_process.py CHECKOUT make|baseline|shift|mosix --architecture NAME --dir DIR --snapshots N [--data DATA]`, started
by `peer.py`. CHECKOUT is github.com/hpides/alsatian, branch `reproducibility`, and stays as it is: what it lacks on a
machine without a GPU and a download of pretrained weights is arranged from here, and nothing that it measures is
replaced. Its ResNet-18 does without the packages of text models. Its BERT takes them, transformers 4 first on Python's
path, and finds seeded weights and a vocabulary in the folder `bert-base-uncased` where the process works; activations
of several tensors are kept as lists, as those that come from a GPU.
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

RESNET, BERT = "resnet18", "bert"
WEIGHTS_FILE = "resnet18-f37072fd.pth"  # the name under which torch's hub keeps the pretrained weights
WEIGHTS_FOLDER = "bert-base-uncased"  # the name by which transformers is asked for the pretrained weights
TEXT_PACKAGES = (
    "torchinfo",
    "transformers",
    "transformers.modeling_attn_mask_utils",
    "transformers.models",
    "transformers.models.resnet",
    "transformers.models.resnet.modeling_resnet",
)
OTHER_PACKAGES = ("psutil", "cpuinfo", "pkg_resources")
# What its chain of layers calls parameters, and what the published model does; a pair for each layer.
STAGES = ("conv1", "bn1", "relu", "maxpool", *(f"layer{stage}.{block}" for stage in range(1, 5) for block in (0, 1)))
PREFIXES = {
    RESNET: tuple((f"{number}.", f"{stage}.") for number, stage in enumerate(STAGES)),
    BERT: (
        ("0.", ""),
        *((f"{number + 1}.encoder.", f"encoder.layer.{number}.") for number in range(12)),
        ("13.", ""),
    ),
}
SECTION = "cpu"


def main() -> None:
    """Make the snapshots, or search them and print one JSON line."""
    options = parse_options()
    folder = options.dir.resolve()
    data = options.data.resolve() if options.data else None
    prepare(options.checkout.resolve(), folder, options.architecture)
    with redirect_stdout(sys.stderr):  # it prints its progress
        found = make(folder, options) if data is None else search(folder, data, options)
    sys.stdout.write(json.dumps(found) + "\n")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of Alsatian")
    parser.add_argument("task", choices=("make", "baseline", "shift", "mosix"), help="what to do")
    parser.add_argument("--architecture", choices=tuple(PREFIXES), default=RESNET, help="its name for the network")
    parser.add_argument("--dir", type=Path, required=True, help="folder of the snapshots")
    parser.add_argument("--snapshots", type=int, required=True, help="how many, the base among them")
    parser.add_argument("--data", type=Path, help="to search for: a folder of images or texts with train and val")
    parser.add_argument("--loaders", type=int, default=0, help="processes that decode images")
    options = parser.parse_args()
    if (options.task == "make") != (options.data is None):
        parser.error("--data: expected with a search, and only there")
    return options


def prepare(checkout: Path, folder: Path, architecture: str) -> None:
    """Let the checkout's modules be imported, find weights in the folder, and compute on the CPU for `cuda`."""
    os.chdir(folder)
    sys.path[0] = str(checkout)  # instead of this file's folder, whose `data` would hide the checkout's
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # its layers are pickled modules of its own
    os.environ["TORCH_HOME"] = str(folder / "hub")
    if architecture == BERT:
        import transformers  # noqa: F401 - looks for the other packages, and must not find their stand-ins
    for name in OTHER_PACKAGES if architecture == BERT else (*TEXT_PACKAGES, *OTHER_PACKAGES):
        sys.modules[name] = _Absent(name)
    import torch
    from global_utils import constants

    constants.CUDA = "cpu"
    torch.cuda.synchronize = lambda: None
    if architecture == BERT:
        from model_search.caching_service import CachingService

        # All that it computes is moved to main memory, tuples as lists, and only lists are taken from there.
        CachingService._is_cuda = lambda self, data: True


class _Absent(types.ModuleType):
    """A package that a search does without: every name in it is an empty class."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def make(folder: Path, options: argparse.Namespace) -> list[str]:
    """Let Alsatian make its snapshots from a seeded base; return the files of their published models' state dicts."""
    import torch

    random.seed(0)
    torch.manual_seed(0)
    base = make_base(folder, options.architecture)

    from experiments.main_experiments.snapshots.synthetic.generate import RetrainDistribution
    from experiments.main_experiments.snapshots.synthetic.generate_set import (
        generate_snapshot_set,
        get_architecture_models,
    )

    place, distribution = str(folder / "theirs"), RetrainDistribution.TWENTY_FIVE_PERCENT
    # Some are retrained nowhere and equal others. As for its paper, a larger set is made, and the first of it are used.
    num_made = options.snapshots + options.snapshots // 4
    save, torch.save = torch.save, _except_parameters(torch.save)
    generate_snapshot_set(options.architecture, num_made, distribution, place, reuse_allowed=True)
    torch.save = save
    snapshots, store = get_architecture_models(place, distribution, options.snapshots, [options.architecture])
    if len(snapshots) < options.snapshots:
        raise SystemExit(f"peer_process: expected {options.snapshots} different snapshots, found {len(snapshots)}")
    link_equal_layers(store)
    exported = folder / "exported"
    exported.mkdir(exist_ok=True)
    names = [f"{number:02d}-{snapshot.state_dict_hash}.pth" for number, snapshot in enumerate(snapshots)]
    for name, snapshot in zip(names, snapshots, strict=True):
        state = as_published(torch.load(snapshot.state_dict_path), base, options.architecture)
        torch.save(state, exported / name)
    return [str(exported / name) for name in names]


def make_base(folder: Path, architecture: str) -> dict[str, Any]:
    """Put seeded weights where the checkout looks for pretrained ones; return their state dict."""
    import torch

    if architecture == BERT:
        from transformers import BertConfig, BertModel

        bert = BertModel(BertConfig())
        bert.save_pretrained(folder / WEIGHTS_FOLDER)
        return dict(bert.state_dict())
    from torchvision.models import resnet18

    base = dict(resnet18().state_dict())
    weights = folder / "hub" / "hub" / "checkpoints" / WEIGHTS_FILE
    weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save(base, weights)
    return base


def _except_parameters(save: Any) -> Any:
    """Return a `torch.save` that leaves out layers' parameters: a second time on the disk, and no search reads them."""

    def saved(value: Any, path: str) -> None:
        if not Path(path).match("*-l-*.pt"):
            save(value, path)

    return saved


def link_equal_layers(store: Any) -> None:
    """Keep one file of each layer, under the names of all snapshots that have it; a search reads one of them."""
    files: dict[tuple[str, str], Path] = {}
    for snapshot in store.models.values():
        for layer in snapshot.layer_states:
            path = Path(layer.pickled_layer_path)
            first = files.setdefault((layer.architecture_hash, layer.state_dict_hash), path)
            if first != path:
                path.unlink()
                path.hardlink_to(first)


def as_published(features: dict[str, Any], base: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Return the state dict of a chain of layers under the published model's names, with the head of the base."""
    state = {name: tensor for name, tensor in base.items() if name.startswith("fc.")}
    for name, tensor in features.items():
        chained, published = PREFIXES[architecture][int(name.partition(".")[0])]
        state[published + name.removeprefix(chained)] = tensor
    if state.keys() != base.keys():
        raise SystemExit(f"peer_process: expected the parameters of {architecture}, found {sorted(features)[:5]}")
    return state


def search(folder: Path, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Search with the published settings; return its seconds by its own clock and its last ranking."""
    from experiments.main_experiments.model_search.experiment_args import ExpArgs
    from experiments.main_experiments.model_search.model_search_exp_synthetic import run_model_search

    caches = folder / "cache"
    caches.mkdir(exist_ok=True)
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
        "snapshot_set_string": options.architecture,
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
