"""Rows of timm, transformers, accelerate, peft and others that save models of libraries."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tools.trainers.row import (
    NUM_CLASSES,
    TIMM,
    TORCHVISION,
    Canary,
    Saved,
    hf_model,
    images,
    plus,
    row,
    tensors_of,
    timm_model,
    torchvision_model,
)

HF_VIT = (
    'hf/vit{"hidden_size":16,"image_size":32,"intermediate_size":32,"num_attention_heads":2,"num_hidden_layers":3,'
    '"patch_size":8}'
)


def timm_checkpoint(folder: Path) -> tuple[Path, nn.Module, nn.Module]:
    """Save as timm's training script does; return the file, the raw model and the averaged one."""
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = timm_model()
    average = ModelEmaV3(model)
    plus(average.module, 1)
    arguments = argparse.Namespace(model=TIMM, num_classes=NUM_CLASSES, img_size=None, model_kwargs={}, canary=Canary())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    saver = CheckpointSaver(model, optimizer, args=arguments, model_ema=average, checkpoint_dir=str(folder))
    saver.save_checkpoint(epoch=3, metric=0.5)
    return folder / "last.pth.tar", model, average.module


@row("timm", "train.py: CheckpointSaver with EMA, raw weights", "timm")
def timm_raw(folder: Path) -> Saved:
    """Save with timm's CheckpointSaver."""
    path, model, _ = timm_checkpoint(folder)
    return Saved(path, tensors_of(model), architecture=f"timm/{TIMM}")


@row("timm", "train.py: its averaged weights, `--entry state_dict_ema`", "timm")
def timm_averaged(folder: Path) -> Saved:
    """Save with timm's CheckpointSaver, for the averaged weights, which timm's own loading prefers."""
    import timm

    path, _, average = timm_checkpoint(folder)
    own = timm.create_model(TIMM, num_classes=NUM_CLASSES)
    timm.models.load_checkpoint(own, str(path), weights_only=False)
    assert all(torch.equal(own.state_dict()[name], tensor) for name, tensor in average.state_dict().items())
    return Saved(path, tensors_of(own), {"entry": "state_dict_ema"}, architecture=f"timm/{TIMM}")


@row("timm", "a folder for the hub (`save_for_hf`)", "timm")
def timm_folder(folder: Path) -> Saved:
    """Save as timm saves for the hub."""
    import timm

    model = timm_model()
    timm.models.save_for_hf(model, folder / "mine", model_config={"num_classes": NUM_CLASSES})
    own = timm.create_model(f"local-dir:{folder / 'mine'}", pretrained=True)
    return Saved(folder / "mine", tensors_of(own), architecture=f"timm/{TIMM}")


@row("timm", "state dict with `--arch timm/NAME`", "timm")
def timm_plain(folder: Path) -> Saved:
    """Save a state dict."""
    model = timm_model()
    torch.save(model.state_dict(), folder / "model.pth")
    return Saved(folder / "model.pth", tensors_of(model), {"architecture": f"timm/{TIMM}"})


@row("timm", "state dict without a word on the architecture", "timm")
def timm_unnamed(folder: Path) -> Saved:
    """Save a state dict that says nothing."""
    torch.save(timm_model().state_dict(), folder / "model.pth")
    return Saved(folder / "model.pth", refusal="--arch")


@row("transformers", "save_pretrained", "transformers")
def hf_folder(folder: Path) -> Saved:
    """Save a folder of transformers."""
    hf_model().save_pretrained(folder / "mine")
    return Saved(folder / "mine", hf_tensors(folder / "mine"), architecture=HF_VIT)


@row("transformers", "save_pretrained in shards", "transformers")
def hf_shards(folder: Path) -> Saved:
    """Save a folder of shards."""
    hf_model().save_pretrained(folder / "mine", max_shard_size="20KB")
    return Saved(folder / "mine", hf_tensors(folder / "mine"), architecture=HF_VIT)


@row("transformers", "pytorch_model.bin of older versions", "transformers")
def hf_bin(folder: Path) -> Saved:
    """Save as versions before 4.35 did, which named tensors as today's files do."""
    from safetensors.torch import load_file

    hf_model().save_pretrained(folder / "mine")
    torch.save(load_file(folder / "mine" / "model.safetensors"), folder / "mine" / "pytorch_model.bin")
    (folder / "mine" / "model.safetensors").unlink()
    return Saved(folder / "mine", hf_tensors(folder / "mine"), architecture=HF_VIT)


@row("transformers", "the base model without a head (`ViTModel`)", "transformers")
def hf_base(folder: Path) -> Saved:
    """Save a body, which has a pooler that the classifier lacks."""
    import transformers

    model = hf_model()
    body = transformers.ViTModel(model.config)
    body.load_state_dict(model.vit.state_dict(), strict=False)
    body.save_pretrained(folder / "mine")
    expected = {f"vit.{name}": tensor for name, tensor in tensors_of(body).items() if not name.startswith("pooler.")}
    return Saved(folder / "mine", expected, architecture=HF_VIT)


@row("transformers", "Trainer: checkpoint-N", "transformers", "accelerate")
def hf_trainer(folder: Path) -> Saved:
    """Train a step with the Trainer."""
    from transformers import Trainer, TrainingArguments

    pixels, labels = images()
    items = [{"pixel_values": one, "labels": int(label)} for one, label in zip(pixels, labels, strict=True)]
    arguments = TrainingArguments(str(folder / "out"), max_steps=1, save_steps=1, use_cpu=True, report_to=[])
    arguments.canary = Canary()
    trainer = Trainer(hf_model(), arguments, train_dataset=items)
    trainer.train()
    return Saved(folder / "out" / "checkpoint-1", hf_tensors(folder / "out" / "checkpoint-1"), architecture=HF_VIT)


@row("transformers", "a model of timm (`TimmWrapper`)", "transformers", "timm")
def hf_timm(folder: Path) -> Saved:
    """Save timm's model in transformers' wrapper."""
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    config = TimmWrapperConfig(architecture=TIMM, num_labels=NUM_CLASSES)
    model = TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict(timm_model().state_dict())
    model.save_pretrained(folder / "mine")
    own = TimmWrapperForImageClassification.from_pretrained(folder / "mine")
    return Saved(folder / "mine", tensors_of(own.timm_model), architecture=f"timm/{TIMM}")


def hf_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder as transformers loads it."""
    import transformers

    return tensors_of(transformers.AutoModelForImageClassification.from_pretrained(folder))


@row("accelerate", "save_model in shards", "accelerate")
def accelerate_model(folder: Path) -> Saved:
    """Save with accelerate."""
    from accelerate import Accelerator, load_checkpoint_in_model

    accelerator = Accelerator(cpu=True)
    accelerator.save_model(accelerator.prepare(torchvision_model()), folder / "mine", max_shard_size="1MB")
    own = torchvision_model()
    plus(own, 1)
    load_checkpoint_in_model(own, folder / "mine")
    return Saved(folder / "mine", tensors_of(own), architecture=TORCHVISION)


@row("accelerate", "save_model of a compiled model", "accelerate")
def accelerate_compiled(folder: Path) -> Saved:
    """Save a compiled model with accelerate."""
    from accelerate import Accelerator

    model = torchvision_model()
    Accelerator(cpu=True).save_model(torch.compile(model), folder / "mine")
    return Saved(folder / "mine", tensors_of(model), architecture=TORCHVISION)


@row("accelerate", "save_state", "accelerate")
def accelerate_state(folder: Path) -> Saved:
    """Save all state with accelerate."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = torchvision_model()
    prepared, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    accelerator.save_state(folder / "state")
    return Saved(folder / "state", tensors_of(prepared), architecture=TORCHVISION)


def adapter(folder: Path, make: Any, **options: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """Save a LoRA adapter of a model; return its folder and what peft's own merging gives."""
    from peft import LoraConfig, PeftModel, get_peft_model

    model = get_peft_model(make(), LoraConfig(r=3, lora_alpha=5, **options))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder / "adapter")
    merged = PeftModel.from_pretrained(make(), str(folder / "adapter")).merge_and_unload()
    return folder / "adapter", tensors_of(merged)


def hf_base_folder(folder: Path) -> str:
    """Save the base of an adapter and return its folder."""
    hf_model().save_pretrained(folder / "base")
    return str(folder / "base")


@row("peft", "LoRA with the head in modules_to_save", "peft", "transformers")
def lora(folder: Path) -> Saved:
    """Save a LoRA adapter."""
    path, expected = adapter(folder, hf_model, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    return Saved(path, expected, {"base": hf_base_folder(folder)})


@row("peft", "rank-stabilised LoRA, biases, patterns", "peft", "transformers")
def lora_patterns(folder: Path) -> Saved:
    """Save a LoRA adapter with what differs from module to module."""
    patterns: dict[str, Any] = {"rank_pattern": {"layers.1.attention.q_proj": 2}, "alpha_pattern": {"v_proj": 7}}
    options = {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "bias": "all", "lora_bias": True}
    path, expected = adapter(folder, hf_model, **options, **patterns)
    return Saved(path, expected, {"base": hf_base_folder(folder)})


@row("peft", "LoRA of convolutions, of torchvision's net", "peft")
def lora_convolutions(folder: Path) -> Saved:
    """Save a LoRA adapter of convolutions."""
    targets = ["features.0.0", "features.2.block.0.0", "classifier.0"]
    path, expected = adapter(folder, torchvision_model, target_modules=targets, modules_to_save=["classifier.3"])
    torch.save(torchvision_model().state_dict(), folder / "base.pth")
    return Saved(path, expected, {"base": str(folder / "base.pth")})


@row("peft", "LoRA, merged and saved", "peft", "transformers")
def lora_merged(folder: Path) -> Saved:
    """Save a merged model."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(hf_model(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.merge_and_unload().save_pretrained(folder / "mine")
    return Saved(folder / "mine", hf_tensors(folder / "mine"), architecture=HF_VIT)


@row("peft", "DoRA", "peft", "transformers")
def dora(folder: Path) -> Saved:
    """Save a DoRA adapter."""
    path, _ = adapter(folder, hf_model, target_modules=["q_proj"], use_dora=True)
    return Saved(path, options={"base": hf_base_folder(folder)}, refusal="merge_and_unload()")


@row("peft", "LoRA of nn.MultiheadAttention", "peft")
def lora_attention(folder: Path) -> Saved:
    """Save an adapter of torch's attention, of which peft adds a part twice."""
    from torchvision.models import VisionTransformer

    def make() -> nn.Module:
        return VisionTransformer(224, 32, 12, 12, 768, 3072, num_classes=NUM_CLASSES)

    path, _ = adapter(folder, make, target_modules=["encoder_layer_0.self_attention"])
    torch.save(make().state_dict(), folder / "base.pth")
    return Saved(path, options={"base": str(folder / "base.pth")}, refusal="merge_and_unload()")


@row("open_clip", "the image tower on timm's trunk, `--entry visual.trunk`", "open_clip", "timm")
def open_clip(folder: Path) -> Saved:
    """Save a CLIP model whose image tower is timm's."""
    import open_clip as library

    vision = {"timm_model_name": TIMM, "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    clip = library.CLIP(embed_dim=16, vision_cfg=vision | {"image_size": 32}, text_cfg=text)
    state = {"epoch": 3, "name": "run", "state_dict": clip.state_dict(), "optimizer": {}}
    torch.save(state, folder / "epoch_3.pt")
    expected = tensors_of(clip.visual.trunk)
    options = {"architecture": f"timm/{TIMM}", "entry": "state_dict/visual.trunk"}
    return Saved(folder / "epoch_3.pt", expected, options)


@row("ultralytics", "a classifier of its own nets", "ultralytics")
def ultralytics(folder: Path) -> Saved:
    """Save as ultralytics does; the net is its own."""
    from ultralytics.nn.tasks import ClassificationModel

    model = ClassificationModel("yolo11n-cls.yaml", nc=NUM_CLASSES, verbose=False)
    state = {"epoch": 3, "model": None, "ema": copy.deepcopy(model).half(), "train_args": {"model": "yolo11n-cls.pt"}}
    torch.save(state | {"canary": Canary()}, folder / "best.pt")
    return Saved(folder / "best.pt", refusal="--arch")


@row("lightly", "a backbone of torchvision under pre-training", "lightly")
def lightly(folder: Path) -> Saved:
    """Save a self-supervised model around torchvision's net."""
    from lightly.models.modules import SimCLRProjectionHead

    model = torchvision_model()
    body = {name: tensor for name, tensor in tensors_of(model).items() if not name.startswith("classifier.3.")}
    model.classifier[3] = nn.Identity()
    net = nn.ModuleDict({"backbone": model, "projection_head": SimCLRProjectionHead(1024, 64, 32)})
    torch.save({"state_dict": net.state_dict()}, folder / "last.ckpt")
    return Saved(folder / "last.ckpt", body, {"entry": "state_dict/backbone"}, architecture=TORCHVISION)


@row("efficientnet_pytorch", "nets of its own", "efficientnet_pytorch")
def efficientnet(folder: Path) -> Saved:
    """Save a net whose names are no library's."""
    from efficientnet_pytorch import EfficientNet

    torch.save(EfficientNet.from_name("efficientnet-b0").state_dict(), folder / "model.pth")
    return Saved(folder / "model.pth", refusal="--arch")
