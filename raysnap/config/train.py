"""How one fine-tune may be told to train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysnap.config.strict import Section


class TrainConfig(Section):
    """How one fine-tune is trained."""

    epochs: int = Field(5, ge=1, le=10_000, description="Passes over the training items.")
    batch_size: int = Field(64, ge=1, le=65_536, description="Items per optimizer step.")
    lr: float = Field(1e-3, gt=0, le=100, description="Learning rate.")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="The torch.optim optimizer.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD; the others ignore it.")
    weight_decay: float = Field(0.0, ge=0, le=10, description="L2 penalty (decoupled for adamw).")
    layer_lrs: tuple[Annotated[float, Field(gt=0, le=100)], ...] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Learning rates from the head to the front, in place of `lr`: the head takes the first, the other "
        "trained blocks share the rest evenly.",
    )
    layer_lr_decay: float | None = Field(
        None, gt=0, le=1, description="Each trained block's rate over that of the block above it; the head has `lr`."
    )
    schedule: Literal["constant", "cosine", "one_cycle", "step"] = Field(
        "constant",
        description="How the rates change from step to step: not, to 0 along a cosine, up and down as in torch's "
        "OneCycleLR, or by `step_factor` every `step_epochs`.",
    )
    warmup_epochs: float = Field(0.0, ge=0, le=10_000, description="Epochs in which the rates rise from 0 first.")
    step_epochs: int = Field(10, ge=1, le=10_000, description="Epochs between two changes of the `step` schedule.")
    step_factor: float = Field(0.1, gt=0, le=1, description="What the `step` schedule multiplies the rates by.")
    clip_norm: float | None = Field(None, gt=0, description="The most that the gradient's norm may be in a step.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Items that pass the blocks at once, whose gradients add up to the batch's; null is a whole batch.",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of each label that is spread over all classes.")
    class_weights: Literal["balanced"] | None = Field(
        None, description="`balanced` weighs each class's items by the inverse of their number; null all items alike."
    )
    mixup_alpha: float = Field(0.0, ge=0, le=100, description="Mixup's Beta parameter, 0 is off; pixels are mixed.")
    cutmix_alpha: float = Field(
        0.0, ge=0, le=100, description="CutMix's Beta parameter, 0 is off; with mixup, batches take either by chance."
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Decay per step of averaged weights, which then are those scored and kept."
    )
    monitor: Literal["val_accuracy", "val_loss"] = Field(
        "val_accuracy", description="What the kept epoch is the best in; of equal accuracies the lower loss decides."
    )
    patience: int | None = Field(
        None, ge=1, le=10_000, description="Epochs in a row without a better one that end the training; null is never."
    )
    views: int | None = Field(
        1,
        ge=1,
        le=1000,
        description="Fixed augmented views of each training item, used in turn by the epochs; 1 is none, null is a "
        "fresh one each epoch.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="What blocks compute in; auto is float32 on a CPU, bfloat16 on a GPU that has it, else float16.",
    )
    channels_last: bool | None = Field(
        None, description="Memory layout of convolutions; null is what is fast: yes on a GPU, no on a CPU."
    )
    compile: bool = Field(False, description="torch.compile of the trained blocks.")
    deterministic: bool = Field(
        False, description="Only deterministic kernels: the same seed gives the same bytes on the same machine."
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="Epochs between checkpoints that a killed trial goes on from; null is only the last."
    )

    @model_validator(mode="after")
    def _options_agree(self) -> TrainConfig:
        if self.layer_lrs is not None and self.layer_lr_decay is not None:
            raise ValueError("expected one of `layer_lrs` and `layer_lr_decay`, found both")
        if self.warmup_epochs and self.schedule == "one_cycle":
            raise ValueError("`one_cycle` has a warm-up of its own: expected `warmup_epochs` 0")
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(f"expected `warmup_epochs` below `epochs` {self.epochs}, found {self.warmup_epochs:g}")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"expected `micro_batch_size` up to `batch_size` {self.batch_size}, found {self.micro_batch_size}"
            )
        return self

    @property
    def is_mixing(self) -> bool:
        """Whether training pixels are mixed with each other, so that no epoch's inputs come again."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0
