"""Rows of training loops: Lightning, fastai, skorch, ignite, mmengine and others."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tools.trainers.row import TORCHVISION, Canary, Saved, images, plus, row, tensors_of, torchvision_model


def loader() -> torch.utils.data.DataLoader[Any]:
    """Return a loader of a few images."""
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images()), batch_size=2)


def lightning_checkpoint(folder: Path, **options: Any) -> tuple[Path, Any]:
    """Train a step with Lightning; return the checkpoint and the class of the module."""
    import lightning

    class Net(lightning.LightningModule):
        def __init__(self, arch: str = TORCHVISION, canary: object = None):  # noqa: ARG002 - they are hyperparameters
            super().__init__()
            self.save_hyperparameters()
            self.net = torchvision_model()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_steps=1, default_root_dir=folder, enable_checkpointing=False, **quiet, **options)
    module = Net(canary=Canary())
    trainer.fit(module, loader())
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt", Net


@row("lightning", "Trainer: the net as an attribute of the module", "lightning")
def lightning(folder: Path) -> Saved:
    """Save a checkpoint of Lightning."""
    path, kind = lightning_checkpoint(folder)
    own = kind.load_from_checkpoint(path, weights_only=False)
    return Saved(path, tensors_of(own.net), architecture=TORCHVISION)


@row("lightning", "Trainer with averaged weights (`WeightAveraging`)", "lightning")
def lightning_averaged(folder: Path) -> Saved:
    """Save a checkpoint of Lightning in which the averaged weights take the place of the raw ones."""
    from lightning.pytorch.callbacks import EMAWeightAveraging

    path, kind = lightning_checkpoint(folder, callbacks=[EMAWeightAveraging(decay=0.5)])
    own = kind.load_from_checkpoint(path, weights_only=False)
    return Saved(path, tensors_of(own.net), {"entry": "state_dict"}, architecture=TORCHVISION)


@row("lightning", "Fabric: save", "lightning")
def fabric(folder: Path) -> Saved:
    """Save with Fabric."""
    from lightning.fabric import Fabric

    own = Fabric(accelerator="cpu", devices=1)
    model = own.setup(torchvision_model())
    own.save(folder / "state.ckpt", {"model": model, "step": 3})
    return Saved(folder / "state.ckpt", tensors_of(model), architecture=TORCHVISION)


def fastai_learner(folder: Path) -> Any:
    """Return a learner of fastai."""
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner

    class Items(torch.utils.data.TensorDataset):
        def new_empty(self) -> Any:
            return None

    own = DataLoader(Items(*images()), bs=2, num_workers=0)
    learner = Learner(DataLoaders(own, own), torchvision_model(), nn.CrossEntropyLoss(), path=folder)
    learner.create_opt()
    learner.canary = Canary()
    return learner


@row("fastai", "learn.save: model and optimizer", "fastai")
def fastai_save(folder: Path) -> Saved:
    """Save with fastai."""
    learner = fastai_learner(folder)
    learner.save("last")
    return Saved(folder / "models" / "last.pth", tensors_of(learner.load("last").model), architecture=TORCHVISION)


@row("fastai", "learn.export: the whole learner, `.pkl`", "fastai")
def fastai_export(folder: Path) -> Saved:
    """Export with fastai."""
    learner = fastai_learner(folder)
    learner.export("export.pkl")
    return Saved(folder / "export.pkl", tensors_of(learner.model), architecture=TORCHVISION)


@row("fastai", "learn.save of `vision_learner`: body and head of its own names", "fastai")
def fastai_vision(folder: Path) -> Saved:
    """Save a net that fastai cut and gave a head."""
    from fastai.vision.learner import create_vision_model
    from torchvision.models import resnet18

    torch.save(create_vision_model(resnet18, 3, pretrained=False).state_dict(), folder / "model.pth")
    return Saved(folder / "model.pth", refusal="--arch")


def skorch_net() -> Any:
    """Return a classifier of skorch."""
    from skorch import NeuralNetClassifier

    net = NeuralNetClassifier(torchvision_model(), criterion=nn.CrossEntropyLoss, max_epochs=1, verbose=0)
    return net.initialize()


@row("skorch", "save_params", "skorch")
def skorch_parameters(folder: Path) -> Saved:
    """Save parameters with skorch."""
    net = skorch_net()
    net.save_params(f_params=str(folder / "params.pt"))
    return Saved(folder / "params.pt", tensors_of(net.module_), architecture=TORCHVISION)


@row("skorch", "save_params in safetensors", "skorch")
def skorch_safetensors(folder: Path) -> Saved:
    """Save parameters with skorch in safetensors."""
    net = skorch_net()
    net.save_params(f_params=str(folder / "params.safetensors"), use_safetensors=True)
    return Saved(folder / "params.safetensors", tensors_of(net.module_), architecture=TORCHVISION)


@row("skorch", "the whole net, pickled", "skorch")
def skorch_pickle(folder: Path) -> Saved:
    """Pickle a net of skorch."""
    net = skorch_net()
    net.canary = Canary()
    (folder / "net.pkl").write_bytes(pickle.dumps(net))
    return Saved(folder / "net.pkl", refusal="torch.save(model.state_dict()")


@row("ignite", "Checkpoint of model, optimizer and engine", "ignite")
def ignite(folder: Path) -> Saved:
    """Save with ignite."""
    from ignite.engine import Engine
    from ignite.handlers import Checkpoint, DiskSaver

    model = torchvision_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    engine = Engine(lambda engine, batch: None)
    handler = Checkpoint({"model": model, "optimizer": optimizer, "trainer": engine}, DiskSaver(str(folder)))
    engine.run([0], max_epochs=1)
    handler(engine)
    [path] = folder.glob("*.pt")
    return Saved(path, tensors_of(model), architecture=TORCHVISION)


@row("catalyst", "save_checkpoint", "catalyst")
def catalyst(folder: Path) -> Saved:
    """Save with catalyst."""
    from catalyst.utils.torch import pack_checkpoint, save_checkpoint

    model = torchvision_model()
    packed = pack_checkpoint(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1), epoch_metrics={"a": 1.0})
    save_checkpoint(packed, str(folder / "last.pth"))
    return Saved(folder / "last.pth", tensors_of(model), architecture=TORCHVISION)


@row("mmengine", "Runner: meta, state_dict, message_hub, optimizer", "mmengine")
def mmengine(folder: Path) -> Saved:
    """Train a step with mmengine's Runner."""
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Net(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = torchvision_model()

        def forward(self, x: torch.Tensor, labels: torch.Tensor, mode: str) -> Any:  # noqa: ARG002
            return {"loss": nn.functional.cross_entropy(self.net(x), labels)}

    net = Net()
    runner = Runner(
        model=net,
        work_dir=str(folder),
        train_dataloader=loader(),
        train_cfg={"by_epoch": True, "max_epochs": 1},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1}},
        experiment_name=folder.name,
    )
    runner.message_hub.update_info("canary", Canary())
    runner.train()
    return Saved(folder / "epoch_1.pth", tensors_of(net.net), architecture=TORCHVISION)


@row("mmpretrain", "a ResNet of its own with torchvision's names: `backbone.`, `head.fc`", "mmpretrain")
def mmpretrain(folder: Path) -> Saved:
    """Save mmpretrain's net, whose head has another name than torchvision's."""
    from mmpretrain.models import build_classifier
    from mmpretrain.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    head = {"type": "LinearClsHead", "num_classes": 3, "in_channels": 512}
    backbone = {"type": "ResNet", "depth": 18}
    config = {"type": "ImageClassifier", "backbone": backbone, "neck": {"type": "GlobalAveragePooling"}, "head": head}
    net = build_classifier(config)
    torch.save({"meta": {"mmpretrain_version": "1.2.0"}, "state_dict": net.state_dict()}, folder / "epoch_1.pth")
    expected = tensors_of(net.backbone)
    expected |= {f"fc.{name}": tensor for name, tensor in tensors_of(net.head.fc).items()}
    return Saved(folder / "epoch_1.pth", expected, architecture="resnet18")


@row("poutyne", "Model.save_weights", "poutyne")
def poutyne(folder: Path) -> Saved:
    """Save with poutyne."""
    from poutyne import Model

    model = torchvision_model()
    Model(model, "sgd", "cross_entropy").save_weights(str(folder / "weights.pt"))
    return Saved(folder / "weights.pt", tensors_of(model), architecture=TORCHVISION)


@row("pytorch_accelerated", "Trainer.save_checkpoint", "pytorch_accelerated")
def pytorch_accelerated(folder: Path) -> Saved:
    """Save with pytorch-accelerated."""
    from pytorch_accelerated.trainer import Trainer

    model = torchvision_model()
    trainer = Trainer(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1), callbacks=[])
    trainer.train(torch.utils.data.TensorDataset(*images()), num_epochs=1, per_device_batch_size=2)
    trainer.save_checkpoint(folder / "model_checkpoint.pt")
    return Saved(folder / "model_checkpoint.pt", tensors_of(model), architecture=TORCHVISION)


@row("torchtnt", "TorchSnapshot-like folder (`DistributedCheckpointSaver`)", "torchtnt")
def torchtnt(folder: Path) -> Saved:
    """Save with torchtnt."""
    from torchtnt.framework.auto_unit import AutoUnit
    from torchtnt.framework.callbacks.dcp_saver import DistributedCheckpointSaver
    from torchtnt.framework.train import train

    class Unit(AutoUnit[Any]):
        def compute_loss(self, state: Any, data: Any) -> Any:  # noqa: ARG002
            output = self.module(data[0])
            return nn.functional.cross_entropy(output, data[1]), output

        def configure_optimizers_and_lr_scheduler(self, module: nn.Module) -> Any:
            return torch.optim.SGD(module.parameters(), 0.1), None

    model = torchvision_model()
    saver = DistributedCheckpointSaver(str(folder / "out"), save_every_n_epochs=1)
    os.environ.setdefault("MASTER_PORT", "29511")
    train(Unit(module=model, device=torch.device("cpu")), loader(), max_epochs=1, callbacks=[saver])
    [path] = (folder / "out").glob("epoch_1*")
    return Saved(path, tensors_of(model), architecture=TORCHVISION)


@row("torchbearer", "ModelCheckpoint: model, optimizer, callbacks", "torchbearer")
def torchbearer(folder: Path) -> Saved:
    """Save with torchbearer."""
    from torchbearer import Trial

    model = torchvision_model()
    trial = Trial(model, torch.optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss())
    torch.save(trial.state_dict(), folder / "model.pt")
    return Saved(folder / "model.pt", tensors_of(model), architecture=TORCHVISION)


@row("monai", "CheckpointSaver of a torchvision net", "monai", "ignite")
def monai(folder: Path) -> Saved:
    """Save with MONAI's handler."""
    from ignite.engine import Engine
    from monai.handlers import CheckpointSaver

    model = torchvision_model()
    saver = CheckpointSaver(str(folder), {"net": model}, save_final=True)
    engine = Engine(lambda engine, batch: None)
    saver.attach(engine)
    engine.run([0], max_epochs=1)
    [path] = folder.glob("*.pt")
    return Saved(path, tensors_of(model), architecture=TORCHVISION)


@row("keras", "`.keras` of the torch backend", "keras")
def keras(folder: Path) -> Saved:
    """Save with keras on torch."""
    import keras as library

    net = library.Sequential([library.layers.Input((8,)), library.layers.Dense(3)])
    net.save(folder / "model.keras")
    return Saved(folder / "model.keras", refusal="torch.save(model.state_dict()")


@row("keras", "`.weights.h5` of the torch backend", "keras")
def keras_weights(folder: Path) -> Saved:
    """Save weights with keras on torch."""
    import keras as library

    net = library.Sequential([library.layers.Input((8,)), library.layers.Dense(3)])
    net.save_weights(folder / "model.weights.h5")
    return Saved(folder / "model.weights.h5", refusal="torch.save(model.state_dict()")


@row("torch", "stochastic weight averaging in place of the raw weights", "torch")
def swapped(folder: Path) -> Saved:
    """Save a copy whose values were replaced by the averaged ones."""
    model = plus(torchvision_model(), 1)
    torch.save({"model_state_dict": model.state_dict(), "loss": 0.5, "epoch": 3}, folder / "best.pt")
    return Saved(folder / "best.pt", tensors_of(model), architecture=TORCHVISION)
