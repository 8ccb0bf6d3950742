"""Configuration of one fine-tune: what the training loop is given."""

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
    weight_decay: float = Field(0.0, ge=0, le=10, description="L2 penalty; decoupled weight decay for adamw.")
    layer_lrs: tuple[Annotated[float, Field(gt=0, le=100)], ...] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Learning rates from the head down, in place of `lr`: the head has the first, the other trained "
        "blocks "
        "are divided evenly among the rest.",
    )
    layer_lr_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Ratio of each trained block's rate to that of the block above it; the head has `lr`.",
    )
    schedule: Literal["constant", "cosine", "one_cycle", "step"] = Field(
        "constant",
        description="How learning rates change over the steps: not at all, to 0 along a cosine, up and down as in "
        "torch's "
        "OneCycleLR, or by `step_factor` every `step_epochs`.",
    )
    warmup_epochs: float = Field(0.0, ge=0, le=10_000, description="Epochs at the start over which rates rise from 0.")
    step_epochs: int = Field(10, ge=1, le=10_000, description="Epochs between the steps of the `step` schedule.")
    step_factor: float = Field(0.1, gt=0, le=1, description="Factor by which the `step` schedule multiplies rates.")
    clip_norm: float | None = Field(None, gt=0, description="Maximum norm of the gradient; null doesn't clip it.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Items per forward and backward pass; gradients are accumulated over the batch. Null is the whole "
        "batch.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each label that is spread evenly over all classes."
    )
    class_weights: Literal["balanced"] | None = Field(
        None,
        description="`balanced` weights each item by the inverse of its class's size; null weights all items equally.",
    )
    mixup_alpha: float = Field(0.0, ge=0, le=100, description="Parameter of mixup's Beta distribution; 0 is off.")
    cutmix_alpha: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Parameter of CutMix's Beta distribution; 0 is off. With mixup on too, each batch gets one at "
        "random.",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay per step of an exponential moving average of the weights, which is then scored and kept.",
    )
    monitor: Literal["val_accuracy", "val_loss"] = Field(
        "val_accuracy", description="Metric whose best epoch is kept; ties in accuracy go to the lower loss."
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Epochs without improvement after which training stops; null never stops early.",
    )
    time_limit_s: float | None = Field(
        None,
        gt=0,
        description="Seconds of training after which no further epoch begins; what was best so far is kept and tested. "
        "The first epoch always runs. Null is no limit.",
    )
    views: int | None = Field(
        1,
        ge=1,
        le=1000,
        description="Fixed augmentation views of each training item, which epochs take in turn; 1 is no augmentation, "
        "null "
        "a fresh view each epoch.",
    )
    batch_statistics: Literal["learn", "keep"] = Field(
        "learn",
        description="Whether the BatchNorm layers of trained blocks learn the statistics of the dataset's batches, or "
        "keep those of the start, which few items or few steps would spoil.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number format of the blocks; auto is float32 on a CPU, bfloat16 on a GPU that supports it, else "
        "float16.",
    )
    channels_last: bool | None = Field(
        None,
        description="Whether convolutions use the channels-last layout; null is the faster: true on a GPU and for "
        "architectures that are faster with it on a CPU (MobileNets, EfficientNets, RegNets), else false.",
    )
    compile: bool = Field(False, description="Whether to compile the trained blocks with torch.compile.")
    deterministic: bool = Field(
        False,
        description="Whether to use only deterministic kernels: the same seed gives the same bytes on the same "
        "machine.",
    )
    checkpoint_every: int | None = Field(
        None,
        ge=1,
        description="Epochs between the checkpoints from which a killed trial resumes; null keeps only the last "
        "epoch's.",
    )

    @model_validator(mode="after")
    def _check_options(self) -> TrainConfig:
        if self.layer_lrs is not None and self.layer_lr_decay is not None:
            raise ValueError("expected one of `layer_lrs` and `layer_lr_decay`, found both")
        if self.warmup_epochs and self.schedule == "one_cycle":
            raise ValueError(
                f"`schedule: one_cycle` includes a warm-up: expected `warmup_epochs` 0, found {self.warmup_epochs:g}"
            )
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(f"expected `warmup_epochs` below `epochs` {self.epochs}, found {self.warmup_epochs:g}")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"expected `micro_batch_size` up to `batch_size` {self.batch_size}, found {self.micro_batch_size}"
            )
        return self

    @property
    def is_mixing(self) -> bool:
        """Whether mixup or CutMix is on, so that no two epochs have the same inputs."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0
