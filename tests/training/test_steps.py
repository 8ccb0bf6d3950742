"""What may be done on the way from a batch to new weights: each option by the law that it promises."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional

from raysnap.config.train import TrainConfig
from raysnap.models import blocks
from raysnap.models.numerics import Numerics
from raysnap.training import finetune
from raysnap.training.feeds import Feed, FrozenPrefix, LabelledItems
from raysnap.training.prefix_cache import PrefixCache
from raysnap.training.state import TrainingState
from raysnap.training.steps import UpdateStep, balanced_weights, split_batches
from raysnap.training.worker import ALONE
from tests.support.small_finetunes import PREPROCESSING, coloured_squares, digests_of, model_of, one_step, run, splits

CPU = Numerics(torch.device("cpu"))


def blank(num_items: int = 8) -> LabelledItems:
    """Items without pixels, for what trains on features."""
    return LabelledItems(
        lambda positions, edge: torch.zeros(len(positions), 3, edge, edge), torch.arange(num_items) % 2
    )


class Head(nn.Sequential):
    """A trained block of one linear layer, as the last block of a model is."""

    name = "head"

    def tensors(self):
        return {key: value.detach() for key, value in self.state_dict().items()}


class Task:
    """Features to classify by a linear head, one optimizer step at a time."""

    def __init__(self, num_items: int = 12, **options):
        generator = torch.Generator().manual_seed(0)
        self.features = torch.randn(num_items, 5, generator=generator)
        self.labels = torch.arange(num_items) % 3
        settings = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.5, "batch_size": num_items} | options
        self.config = TrainConfig(**settings)
        torch.manual_seed(1)
        self.head = nn.Sequential(Head(nn.Linear(5, 3)))
        self.before = copy.deepcopy(self.head)
        self.state = TrainingState.start(self.head, self.config, 0, CPU)
        self.step = UpdateStep.start(self.head, self.state, self.labels, CPU, ALONE)

    def run(self) -> float:
        return self.step.run_epoch(Feed(lambda positions: self.features[positions], self.labels))

    @property
    def update(self) -> torch.Tensor:
        """What the step added to the weights, over the negative learning rate: the gradient it took."""
        return (self.before[0][0].weight - self.head[0][0].weight).detach() / self.config.lr

    def gradient(self, **options) -> torch.Tensor:
        """Return the gradient of torch's own mean loss on the whole batch."""
        loss = functional.cross_entropy(self.before(self.features), self.labels, **options)
        return torch.autograd.grad(loss, self.before[0][0].weight)[0]


def test_a_plain_step_takes_the_gradient_of_the_mean_loss():
    task = Task()
    loss = task.run()
    torch.testing.assert_close(task.update, task.gradient())
    assert loss == pytest.approx(functional.cross_entropy(task.before(task.features), task.labels).item())


@pytest.mark.parametrize("micro_batch_size", [1, 4, 5, 11, 12])
def test_gradients_of_parts_add_up_to_the_batchs(micro_batch_size):
    task = Task(micro_batch_size=micro_batch_size)
    task.run()
    torch.testing.assert_close(task.update, task.gradient())


def test_label_smoothing_is_torchs():
    task = Task(label_smoothing=0.2)
    task.run()
    torch.testing.assert_close(task.update, task.gradient(label_smoothing=0.2))


def test_clipping_bounds_the_norm_and_keeps_the_direction():
    task, free = Task(clip_norm=0.01), Task()
    task.run(), free.run()
    weight, bias = (one.grad for one in task.head.parameters())
    assert torch.cat([weight.flatten(), bias]).norm() == pytest.approx(0.01, rel=1e-3)
    assert functional.cosine_similarity(task.update.flatten(), free.update.flatten(), dim=0) == pytest.approx(1.0)


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 2], [0, 1], [1, 1, 1, 1, 0]])
def test_balanced_weights_are_scikit_learns(labels):
    classes = np.unique(labels)
    expected = compute_class_weight("balanced", classes=classes, y=labels)
    found = balanced_weights(torch.tensor(labels), int(classes.max()) + 1)
    assert found.tolist() == pytest.approx(expected.tolist())
    assert found[torch.tensor(labels)].mean() == pytest.approx(1.0)


def test_a_class_without_items_weighs_nothing():
    assert balanced_weights(torch.tensor([0, 0, 2]), 4).tolist() == pytest.approx([0.75, 0.0, 1.5, 0.0])


def test_class_weights_weigh_the_loss():
    task = Task(class_weights="balanced")
    task.labels[:] = torch.tensor([0] * 8 + [1] * 3 + [2])
    task.step = UpdateStep.start(task.head, task.state, task.labels, CPU, ALONE)
    task.run()
    weights = balanced_weights(task.labels, 3)
    torch.testing.assert_close(task.update, task.gradient(weight=weights, reduction="sum") / 12)


def test_soft_labels_of_one_class_weigh_as_that_class():
    plain, soft = Task(class_weights="balanced"), Task(class_weights="balanced")
    for task in (plain, soft):
        task.labels[:] = torch.tensor([0] * 8 + [1] * 3 + [2])
        task.step = UpdateStep.start(task.head, task.state, task.labels, CPU, ALONE)
    plain_loss = plain.run()
    one_hot = functional.one_hot(soft.labels, 3).float()
    feed = Feed(lambda positions: soft.features[positions], soft.labels)
    mixed = replace(feed, mixed=lambda positions: (soft.features[positions], one_hot[positions]))
    assert soft.step.run_epoch(mixed) == pytest.approx(plain_loss)
    torch.testing.assert_close(soft.update, plain.update)


def test_a_scheduled_rate_reaches_the_optimizer_at_every_step(monkeypatch):
    task = Task(batch_size=4, schedule="cosine", epochs=2)
    seen = []
    monkeypatch.setattr(
        task.state.optimizer, "step", lambda *_: seen.append(task.state.optimizer.param_groups[0]["lr"])
    )
    task.run()
    task.state.history.append({})
    task.run()
    expected = [0.5 * (1 + np.cos(np.pi * step / 6)) / 2 for step in range(6)]
    assert seen == pytest.approx(expected)


def test_averaged_weights_follow_the_trained_and_are_kept(tmp_path):
    task = Task(batch_size=4, ema_decay=0.5, epochs=1)
    expected = task.before[0][0].weight.detach().clone()
    average = TrainingState.average

    def follow(state, step):
        nonlocal expected
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * task.head[0][0].weight.detach()
        average(state, step)

    task.state.average = follow.__get__(task.state)
    task.run()
    torch.testing.assert_close(task.state.averaged[0][0].weight, expected)
    assert not torch.equal(expected, task.head[0][0].weight)
    scores = {"val_accuracy": 1.0, "val_loss": 0.0}
    task.state.end_epoch({"epoch": 1} | scores, scores)
    torch.testing.assert_close(task.state.best_tensors["head"]["0.weight"], expected)


# Whole fine-tunes


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.9},
        {"mixup_alpha": 0.3},
        {"cutmix_alpha": 1.0, "views": 2},
        {"mixup_alpha": 0.3, "cutmix_alpha": 1.0, "views": None, "class_weights": "balanced", "label_smoothing": 0.1},
        {"micro_batch_size": 3, "clip_norm": 1.0, "optimizer": "sgd"},
        {"layer_lr_decay": 0.5, "schedule": "one_cycle"},
        {"layer_lrs": (1e-3, 1e-4), "schedule": "step", "step_epochs": 1, "warmup_epochs": 0.5},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_option_trains_alike_twice_and_keeps_frozen_blocks(tmp_path, changes):
    config = TrainConfig(**{"epochs": 2, "batch_size": 4} | changes)
    models = [model_of("mobilenet_v3_small") for _ in range(2)]
    before, depth = digests_of(models[0]), len(models[0]) - 2
    for model in models:
        result = run(model, depth, config, one_step(8), prefix=PrefixCache.beside(tmp_path, depth, 10**9))
        assert digests_of(model)[:depth] == before[:depth]
        assert digests_of(model)[depth:] != before[depth:]
    assert digests_of(models[0]) == digests_of(models[1])
    assert result.history[0]["lr"] > 0


def test_mixing_uses_pixels_and_caches_only_unmixed_items(tmp_path):
    cache = PrefixCache.beside(tmp_path, 9, budget_bytes=10**9)
    run(model_of("resnet18"), 9, TrainConfig(epochs=2, batch_size=8, mixup_alpha=0.5), splits(16), prefix=cache)
    assert len(list(cache.place.glob("*/"))) == 2, "val and test, nothing of train"

    frozen = model_of("resnet18")[:1].eval()
    items = coloured_squares(6, 0)
    with FrozenPrefix(frozen, PREPROCESSING, CPU) as prefix:
        images = FrozenPrefix(frozen[:0], PREPROCESSING, CPU).feed(items).inputs(torch.arange(6))
        feed = prefix.mixed_feed(
            items, None, lambda pixels, labels: (pixels.flip(0), functional.one_hot(labels).float())
        )
        inputs, targets = feed.batch(torch.arange(6))
        torch.testing.assert_close(inputs, frozen(images.flip(0)).detach())
        assert targets.shape == (6, 2)


def test_test_metrics_agree_with_scikit_learn(monkeypatch):
    """Six classes, so that top-5 differs from top-1 and from everything."""

    def items(num_items, seed):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 255, (num_items, 3, 36, 36), generator=generator, dtype=torch.uint8)
        return LabelledItems(lambda positions, edge: pixels[positions][:, :, :edge, :edge], torch.arange(num_items) % 6)

    model = blocks.build_model("resnet18", [tensors for _, tensors in blocks.random_tensors("resnet18", 6, 0)])
    test = items(31, 2)
    data = {"train": items(24, 0), "val": items(12, 1), "test": test}
    result = run(model, 8, TrainConfig(epochs=1, batch_size=8), data)
    images = FrozenPrefix(model[:0], PREPROCESSING, CPU).feed(test).inputs(torch.arange(31))
    probabilities = model.eval()(images).detach().double().softmax(1).numpy()
    labels = test.labels.numpy()
    predicted = probabilities.argmax(1)
    assert result.predictions.classes == predicted.tolist()
    assert result.predictions.confidences == pytest.approx(probabilities.max(1).tolist(), rel=1e-4)
    seen = result.metrics
    assert seen["test_accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert seen["test_top5_accuracy"] == pytest.approx(
        metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(6))
    )
    assert seen["test_macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert seen["test_loss"] == pytest.approx(metrics.log_loss(labels, probabilities, labels=range(6)), rel=1e-4)


# Early stopping

CURVES = [  # val losses, patience, the epoch it ends after, the epoch that is kept
    ([5, 4, 3, 2, 1, 0.5], 2, 6, 6),
    ([5, 4, 4.1, 4.2, 4.3, 1], 3, 5, 2),
    ([5, 4, 4.1, 4.2, 3.9, 4], 3, 6, 5),
    ([1, 2, 3, 4, 5, 6], 1, 2, 1),
    ([3, 3, 3, 3, 3, 3], 3, 4, 1),
    ([3, 2, 4, 1, 4, 4], 2, 6, 4),
    ([5, 4, 4.1, 4.2, 4.3, 1], None, 6, 6),
]


@pytest.mark.parametrize(("losses", "patience", "last", "kept"), CURVES)
def test_early_stopping_restores_the_best_weights(monkeypatch, losses, patience, last, kept):
    """Val losses are planted; accuracy rises all along, so that it is the loss that is looked at."""
    weights, seen = [], []

    def evaluate(trained, feed, terms, into=None):
        weights.append(digests_of(trained))
        number = min(len(weights), len(losses)) - 1
        return {"loss": float(losses[number]), "accuracy": 0.1 * number, "top5_accuracy": 1.0}

    monkeypatch.setattr(finetune, "evaluate_with", evaluate)
    model = model_of("resnet18")
    config = TrainConfig(epochs=len(losses), batch_size=24, patience=patience, monitor="val_loss")
    data = {"train": coloured_squares(8, 0), "val": coloured_squares(2, 1)}
    report = lambda entry, save: seen.append(save is not None and save.is_final)  # noqa: E731
    result = run(model, 9, config, data, on_epoch=report)
    assert len(result.history) == last
    assert result.metrics["best_epoch"] == kept
    assert result.cut_short_by == ("patience" if last < len(losses) else None)
    assert digests_of(model)[-1:] == weights[kept - 1]
    assert seen == [False] * (last - 1) + [True], "the last one is known as such"


@pytest.mark.parametrize(("limit_s", "last"), [(1e-9, 1), (1e9, 3), (None, 3)])
def test_no_epoch_begins_that_the_time_limit_does_not_allow(limit_s, last):
    data = {split: coloured_squares(4, seed) for seed, split in enumerate(("train", "val", "test"))}
    result = run(model_of("resnet18"), 9, TrainConfig(epochs=3, batch_size=8, time_limit_s=limit_s), data)
    assert (len(result.history), result.cut_short_by) == (last, "time_limit" if last < 3 else None)
    assert "test_accuracy" in result.metrics


@pytest.mark.parametrize(("monitor", "kept"), [("val_accuracy", 2), ("val_loss", 3)])
def test_the_kept_epoch_is_the_best_in_what_is_monitored(monkeypatch, monitor, kept):
    curve = iter([(0.5, 3.0), (0.9, 2.0), (0.8, 1.0), (0.7, 1.5)])

    def evaluate(trained, feed, terms, into=None):
        accuracy, loss = next(curve)
        return {"loss": loss, "accuracy": accuracy, "top5_accuracy": 1.0}

    monkeypatch.setattr(finetune, "evaluate_with", evaluate)
    data = {"train": coloured_squares(8, 0), "val": coloured_squares(2, 1)}
    result = run(model_of("resnet18"), 9, TrainConfig(epochs=4, batch_size=24, monitor=monitor), data)
    assert result.metrics["best_epoch"] == kept


def test_batches_keep_every_item_and_leave_none_alone():
    for num_items in range(2, 30):
        for batch_size in range(2, 12):
            runs = split_batches(torch.arange(num_items), batch_size)
            assert torch.cat(runs).tolist() == list(range(num_items))
            assert min(map(len, runs)) >= 2
