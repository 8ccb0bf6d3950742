"""One fine-tune: a plain function over a model, its data and a configuration; no Ray in it.

Frozen blocks run in eval mode without autograd, once per item and view where their outputs are cached, and must stay
byte-identical: BatchNorm statistics do not drift, dropout and stochastic depth are off in them. The epoch that is best
on val is kept; test is evaluated once, after that choice. `raysnap.training.steps` updates weights from a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from raysnap.config.train import TrainConfig
from raysnap.errors import OutOfMemory
from raysnap.models.blocks import blocks_of
from raysnap.models.numerics import Numerics
from raysnap.store.preprocessing import AnyPreprocessing
from raysnap.training.evaluation import Predictions, Scores, evaluate_with, predictions_of
from raysnap.training.feeds import Feed, FrozenPrefix, LabelledItems, View
from raysnap.training.freezing import StartModel
from raysnap.training.prefix_cache import PrefixCache
from raysnap.training.state import TrainingState, random_state
from raysnap.training.steps import UpdateStep, diverged
from raysnap.training.terms import Terms
from raysnap.training.worker import ALONE, Worker

# How torch and the libraries below it report it; oneDNN says no more than this.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a primitive",
    "could not execute a primitive",
)


@dataclass(frozen=True)
class Save:
    """Writes the checkpoint that is due into a folder; `is_final` where no epoch comes after it."""

    write: Callable[[Path], None]
    is_final: bool

    def __call__(self, directory: Path) -> None:
        self.write(directory)


EpochCallback: TypeAlias = Callable[[dict[str, float], Save | None], None]
"""Takes an epoch's history entry and, where a checkpoint is due, what writes it."""


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tune leaves behind; the model itself holds the best epoch's weights.

    Attributes:
        metrics: `val_loss`, `val_accuracy`, `val_top5_accuracy`, `val_macro_f1`, the same of `test` where there is one,
            `best_epoch`.
        history: a dict per epoch: `epoch`, `train_loss`, the metrics of val, `lr` (the head's in the last step),
            `epoch_s`.
        timings_s: `prefix` (filling the cache), `train`, `evaluate`, `verify`.
        predictions: of the test items, on the first worker; None without any.
        cut_short_by: what ended it before its last epoch, `patience` or `time_limit`; None where nothing did.
    """

    metrics: dict[str, float]
    history: list[dict[str, float]]
    timings_s: dict[str, float]
    predictions: Predictions | None
    cut_short_by: str | None


def finetune(
    start: StartModel,
    splits: dict[str, LabelledItems],
    preprocessing: AnyPreprocessing,
    config: TrainConfig,
    *,
    seed: int,
    on_epoch: EpochCallback,
    resume_dir: Path | None = None,
    prefix: PrefixCache | None = None,
    views_seed: int | None = None,
    worker: Worker = ALONE,
) -> FinetuneResult:
    """Train all but the frozen blocks of a model in place, and return its scores and history.

    Several workers share every batch, so that they train what one worker would, up to rounding. Trained BatchNorm takes
    its statistics from the whole batch on GPUs (SyncBatchNorm), from each worker's part on CPUs.

    Args:
        splits: `train` and `val`, and `test` where there is one.
        on_epoch: called on every worker with each epoch's history entry and, where a checkpoint is due, with what
            writes it into a folder: every `checkpoint_every` epochs, to be called before `on_epoch` returns, and after
            the last epoch (its `is_final` is true), which may be called later too. Only the first worker need call it.
        resume_dir: an unfinished checkpoint of the same fine-tune; the result is as if it had never stopped.
        prefix: where outputs of frozen blocks are cached; None runs them in every epoch.
        views_seed: seed of fixed views, which trials with the same one share; None is `seed`.

    Raises:
        TrainingDiverged: the loss, a score or a weight became NaN or infinite.
        OutOfMemory: the device or the machine has too little memory.
        FrozenBlockChanged: a frozen block no longer has its digest, or was in training mode.
        WeightsError: `resume_dir` holds no such checkpoint.
        ConfigError: there are more `layer_lrs` than trained blocks.
    """
    numerics = Numerics.choose(config, next(start.model.parameters()).device, start.architecture)
    terms = Terms(config, numerics, worker, seed, seed if views_seed is None else views_seed)
    try:
        with numerics.applied(), _forked_random_state(numerics.device):
            torch.manual_seed(seed + worker.rank)
            start.freeze()
            numerics.lay_out(start.model)
            frozen = FrozenPrefix(
                start.frozen,
                preprocessing,
                numerics,
                digests=start.frozen_digests,
                cache=prefix,
                verify=start.check_frozen,
            )
            result = _run(start.trained, frozen, splits, terms, resume_dir, on_epoch)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0]
    else:
        started = time.perf_counter()
        start.check_frozen()
        result.timings_s["verify"] = time.perf_counter() - started
        return result
    # Raised here, where the error and every tensor in its traceback are freed: a retry finds the memory free.
    raise OutOfMemory(
        f"fine-tune on {numerics.device}: expected memory for train.batch_size {config.batch_size} and "
        f"{len(start.trained)} trained blocks, found too little: {reason}; try a smaller train.batch_size"
    )


def _run(
    trained: nn.Sequential,
    frozen: FrozenPrefix,
    splits: dict[str, LabelledItems],
    terms: Terms,
    resume_dir: Path | None,
    on_epoch: EpochCallback,
) -> FinetuneResult:
    """Train the blocks and load the best epoch's weights into them; the frozen ones aren't verified yet."""
    worker = terms.worker
    trained = worker.synchronise_batchnorm(trained, terms.numerics.device)
    state = TrainingState.start(trained, terms.config, terms.seed, terms.numerics)
    if resume_dir is not None:
        state.load(resume_dir, worker.rank)
    with frozen:
        timings_s = _train(state, frozen, splits, terms, on_epoch)
        state.restore_best()
        metrics = state.best
        outputs: list[Tensor] = []
        if "test" in splits:
            preparing = time.perf_counter()
            feed = frozen.feed(splits["test"])
            started = time.perf_counter()
            metrics = metrics | _named("test", evaluate_with(trained, feed, terms, into=outputs))
            timings_s["prefix"] += started - preparing
            timings_s["evaluate"] += time.perf_counter() - started
    return FinetuneResult(metrics, state.history, timings_s, predictions_of(outputs, worker), state.cut_short_by)


def _train(
    state: TrainingState,
    frozen: FrozenPrefix,
    splits: dict[str, LabelledItems],
    terms: Terms,
    on_epoch: EpochCallback,
) -> dict[str, float]:
    """Run the remaining epochs and return the seconds they took, by phase."""
    config, trained = terms.config, state.trained
    timings_s = dict.fromkeys(("prefix", "train", "evaluate", "verify"), 0.0)
    forward: Callable[[Tensor], Tensor] = terms.worker.parallel(trained)
    if config.compile:
        forward = torch.compile(forward)
    step = UpdateStep.start(forward, state, splits["train"].labels, terms.numerics, terms.worker)
    while not state.is_over:
        epoch = len(state.history) + 1
        preparing = time.perf_counter()
        train = _training_feed(frozen, splits["train"], terms.view(epoch), step, config)
        val = frozen.feed(splits["val"])
        started = time.perf_counter()
        train_loss = step.run_epoch(train)
        evaluating = time.perf_counter()
        terms.worker.synchronise_buffers(state.scored)
        scores = _named("val", evaluate_with(state.scored, val, terms))
        _check_finite(trained, {"train_loss": train_loss} | scores, config)
        ended = time.perf_counter()
        timings_s["prefix"] += started - preparing
        timings_s["train"] += evaluating - started
        timings_s["evaluate"] += ended - evaluating
        lr = state.optimizer.param_groups[-1]["lr"]
        entry = {"epoch": epoch, "train_loss": train_loss} | scores | {"lr": lr, "epoch_s": ended - started}
        state.end_epoch(entry, scores)
        on_epoch(entry, _checkpoint(state, epoch, terms))
    return timings_s


def _training_feed(
    frozen: FrozenPrefix, items: LabelledItems, view: View | None, step: UpdateStep, config: TrainConfig
) -> Feed:
    """Return the training items as an epoch sees them: in a fixed view, a fresh one, or mixed with each other."""
    if step.mix is not None:
        return frozen.mixed_feed(items, view, step.mix)
    return frozen.feed(items, view, is_fixed=config.views is not None)


def _checkpoint(state: TrainingState, epoch: int, terms: Terms) -> Save | None:
    """Return what writes the checkpoint that is due after this epoch; None where none is."""
    if state.is_over:
        return Save(lambda directory: state.save(directory, None), is_final=True)
    every = terms.config.checkpoint_every
    if every is None or epoch % every:
        return None
    random_states = terms.worker.gather(random_state(terms.numerics.device))
    return Save(lambda directory: state.save(directory, random_states), is_final=False)


def _named(split: str, scores: Scores) -> Scores:
    return {f"{split}_{name}": value for name, value in scores.items()}


def _check_finite(trained: nn.Sequential, scores: Scores, config: TrainConfig) -> None:
    """Raise where a score or a trained weight is not finite; a loss can be finite while a weight is not."""
    for name, value in scores.items():
        if not math.isfinite(value):
            raise diverged(name, value, config)
    for block in blocks_of(trained):
        for name, tensor in block.tensors().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise diverged(f"the weight {name}", "not finite", config)


def _forked_random_state(device: torch.device) -> Any:
    """Return a context that restores the state of torch's generators."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _is_out_of_memory(error: Exception) -> bool:
    is_known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_known or any(words in str(error) for words in _NO_MEMORY)
