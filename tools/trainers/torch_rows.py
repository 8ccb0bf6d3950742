"""Rows of torch itself, torchvision's reference script and torch's own formats."""

from __future__ import annotations

import argparse
import copy
import os
import pickle
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from tools.trainers.row import TORCHVISION, Canary, Saved, images, plus, row, tensors_of, torchvision_model


def saved(folder: Path, value: object, name: str = "model.pth", **options: bool) -> Path:
    """Write a value with `torch.save`."""
    torch.save(value, folder / name, **options)
    return folder / name


def found(path: Path, model: nn.Module, **options: object) -> Saved:
    """Return a row of torchvision's small net whose tensors are these of a model."""
    return Saved(path, tensors_of(model), options, architecture=TORCHVISION)


@row("torch", "state dict")
def state_dict(folder: Path) -> Saved:
    """Save a state dict."""
    model = torchvision_model()
    return found(saved(folder, model.state_dict()), model)


@row("torch", "state dict in the format before 1.6 (tar-like)")
def legacy(folder: Path) -> Saved:
    """Save in the old format."""
    model = torchvision_model()
    return found(saved(folder, model.state_dict(), "old.tar", _use_new_zipfile_serialization=False), model)


@row("torch", "whole module, `torch.save(model)`")
def whole_module(folder: Path) -> Saved:
    """Save a module."""
    model = torchvision_model()
    model.canary = Canary()
    return found(saved(folder, model, "model.pt"), model)


@row("torch", "whole module in the old format, `.pkl`")
def whole_module_legacy(folder: Path) -> Saved:
    """Save a module in the old format."""
    model = torchvision_model()
    model.canary = Canary()
    return found(saved(folder, model, "model.pkl", _use_new_zipfile_serialization=False), model)


@row("pickle", "whole module, `pickle.dump(model)`")
def plain_pickle(folder: Path) -> Saved:
    """Pickle a module without torch."""
    model = torchvision_model()
    model.canary = Canary()
    (folder / "model.pkl").write_bytes(pickle.dumps(model))
    return Saved(folder / "model.pkl", refusal="torch.save(model.state_dict()")


@row("torch", "DataParallel")
def data_parallel(folder: Path) -> Saved:
    """Save what is wrapped for several GPUs."""
    model = torchvision_model()
    return found(saved(folder, {"state_dict": nn.DataParallel(model).state_dict(), "epoch": 3}), model)


@row("torch", "torch.compile, `_orig_mod.`")
def compiled(folder: Path) -> Saved:
    """Save a compiled model."""
    model = torchvision_model()
    return found(saved(folder, {"model": torch.compile(model).state_dict()}), model)


@row("torch", "swa_utils.AveragedModel")
def averaged(folder: Path) -> Saved:
    """Save averaged weights alone."""
    model = torchvision_model()
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(plus(copy.deepcopy(model), 1))
    return found(saved(folder, average.state_dict()), average.module)


@row("torch", "ImageNet example: arch, state_dict, optimizer")
def imagenet_example(folder: Path) -> Saved:
    """Save as torch's example for ImageNet does."""
    model = torchvision_model()
    state = {"epoch": 3, "arch": TORCHVISION, "state_dict": nn.DataParallel(model).state_dict(), "canary": Canary()}
    state |= {"best_acc1": torch.tensor(0.5), "optimizer": torch.optim.SGD(model.parameters(), 0.1).state_dict()}
    return found(saved(folder, state, "model_best.pth.tar"), model)


@row("torchvision", "reference script: model, optimizer, lr_scheduler, args, model_ema")
def reference_script(folder: Path) -> Saved:
    """Save as torchvision's references/classification does."""
    model = torchvision_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    average = torch.optim.swa_utils.AveragedModel(plus(copy.deepcopy(model), 1))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "model_ema": average.state_dict()}
    state |= {"lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 30).state_dict(), "epoch": 1}
    state |= {"args": argparse.Namespace(model=TORCHVISION, output_dir=Path("out"), canary=Canary())}
    return found(saved(folder, state, "checkpoint.pth"), model)


@row("torchvision", "reference script: its averaged weights, `--entry model_ema`")
def reference_script_averaged(folder: Path) -> Saved:
    """Save as torchvision's references/classification does, for the averaged weights."""
    path = reference_script(folder).path
    average = plus(torchvision_model(), 1)
    return found(path, average, entry="model_ema")


@row("torch", "distributed checkpoint (DCP), a folder")
def distributed(folder: Path) -> Saved:
    """Save with torch.distributed.checkpoint."""
    import torch.distributed.checkpoint as dcp

    model = torchvision_model()
    dcp.save({"model": model.state_dict(), "step": 3}, checkpoint_id=folder / "dcp")
    return found(folder / "dcp", model)


@row("torch", "FSDP2, full state dict")
def fully_sharded(folder: Path) -> Saved:
    """Save the whole state dict of a sharded model."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    model = torchvision_model()
    expected = tensors_of(model)
    with one_process(folder):
        fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        path = saved(folder, {"model": get_model_state_dict(model, options=options)})
    return Saved(path, expected, architecture=TORCHVISION)


@row("torch", "FSDP2, sharded state dict in a DCP folder")
def fully_sharded_distributed(folder: Path) -> Saved:
    """Save the shards of a sharded model."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.fsdp import fully_shard

    model = torchvision_model()
    expected = tensors_of(model)
    with one_process(folder):
        fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.AdamW(model.parameters())
        weights, optimizer_state = get_state_dict(model, optimizer)
        dcp.save({"app": {"model": weights, "optim": optimizer_state}}, checkpoint_id=folder / "dcp")
    return Saved(folder / "dcp", expected, architecture=TORCHVISION)


class one_process:  # noqa: N801 - it is used like a function
    """A process group of this process alone."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> None:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{self._folder}/rendezvous", rank=0, world_size=1
        )

    def __exit__(self, *_: object) -> None:
        torch.distributed.destroy_process_group()
        (self._folder / "rendezvous").unlink(missing_ok=True)


@row("torch", "DistributedDataParallel")
def distributed_data_parallel(folder: Path) -> Saved:
    """Save what is wrapped for several processes."""
    model = torchvision_model()
    with one_process(folder):
        path = saved(folder, nn.parallel.DistributedDataParallel(model).state_dict())
    return found(path, model)


@row("torch", "half precision")
def half(folder: Path) -> Saved:
    """Save float16."""
    model = torchvision_model().half()
    return found(saved(folder, model.state_dict()), model)


@row("torch", "bfloat16")
def brain_float(folder: Path) -> Saved:
    """Save bfloat16."""
    model = torchvision_model().bfloat16()
    return found(saved(folder, model.state_dict()), model)


@row("torch", "channels last, tensors on one storage")
def channels_last(folder: Path) -> Saved:
    """Save tensors of another memory layout."""
    model = torchvision_model().to(memory_format=torch.channels_last)
    return found(saved(folder, model.state_dict()), model)


@row("torch", "EMA of a copy, beside the raw model (`ema`)")
def copied_average(folder: Path) -> Saved:
    """Save two whole modules, as YOLO-like trainers do."""
    model = torchvision_model()
    state = {"model": model, "ema": plus(copy.deepcopy(model), 1), "updates": 7, "canary": Canary()}
    return found(saved(folder, state, "last.pt"), model)


@row("torch", "a module with the net as an attribute, `net.`")
def attribute(folder: Path) -> Saved:
    """Save a module around the net."""
    model = torchvision_model()
    return found(saved(folder, nn.ModuleDict({"net": model}).state_dict()), model)


@row("safetensors", "save_model with metadata")
def with_metadata(folder: Path) -> Saved:
    """Save with safetensors."""
    model = torchvision_model()
    safetensors.torch.save_model(model, str(folder / "best.safetensors"), {"epoch": "3", "arch": TORCHVISION})
    return found(folder / "best.safetensors", model)


@row("torch", "TorchScript (`torch.jit.save`)")
def scripted(folder: Path) -> Saved:
    """Save a traced model."""
    torch.jit.trace(torchvision_model(), images()[0]).save(str(folder / "model.pt"))
    return Saved(folder / "model.pt", refusal="torch.jit.load")


@row("torch", "exported program (`torch.export.save`, .pt2)")
def exported(folder: Path) -> Saved:
    """Save an exported program."""
    torch.export.save(torch.export.export(torchvision_model(), (images()[0],)), str(folder / "model.pt2"))
    return Saved(folder / "model.pt2", refusal="torch.export.load")


@row("onnx", "ONNX", "onnx", "onnxscript")
def onnx(folder: Path) -> Saved:
    """Export to ONNX."""
    torch.onnx.export(torchvision_model(), (images()[0],), str(folder / "model.onnx"), dynamo=True, verbose=False)
    return Saved(folder / "model.onnx", refusal="torch.save(model.state_dict()")


@row("huggingface_hub", "PyTorchModelHubMixin of a module of one's own", "huggingface_hub")
def hub_mixin(folder: Path) -> Saved:
    """Save a module of one's own as for the hub."""
    from huggingface_hub import PyTorchModelHubMixin

    class Net(nn.Module, PyTorchModelHubMixin):
        def __init__(self, width: int = 3):
            super().__init__()
            self.backbone = torchvision_model()
            self.width = width

    net = Net()
    net.save_pretrained(folder / "mine")
    return found(folder / "mine", Net.from_pretrained(folder / "mine").backbone)


@row("ray", "Ray Train: a checkpoint folder with model.pt", "ray")
def ray_train(folder: Path) -> Saved:
    """Save as Ray Train's own examples do."""
    from ray.train import Checkpoint

    model = torchvision_model()
    (folder / "checkpoint_000000").mkdir()
    path = folder / "checkpoint_000000" / "model.pt"
    torch.save(nn.DataParallel(model).state_dict(), path)
    with Checkpoint.from_directory(os.fspath(path.parent)).as_directory() as found_folder:
        return found(Path(found_folder), model)
