"""Fine-tuning: what is frozen stays byte-identical, what is trained learns, and the best epoch is the one kept."""

import math
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raysnap.config.train import TrainConfig
from raysnap.errors import FrozenBlockChanged, OutOfMemory, TrainingDiverged, WeightsError
from raysnap.models.block_facts import num_body_blocks
from raysnap.models.numerics import Numerics
from raysnap.models.tensor_bytes import block_digest, decode
from raysnap.training import evaluation, finetune
from raysnap.training.freezing import StartModel
from raysnap.training.steps import UpdateStep
from tests.support import ROOT
from tests.support.small_finetunes import (
    FAMILIES,
    OF_OTHER_LIBRARIES,
    PREPROCESSING,
    Killed,
    cache_in,
    coloured_squares,
    digests_of,
    model_of,
    one_step,
    run,
    splits,
    without_times,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors as small as here only wait for the other threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("architecture", [*FAMILIES, *OF_OTHER_LIBRARIES])
def test_frozen_blocks_of_every_family_keep_their_digests(architecture):
    model = model_of(architecture)
    num_frozen = num_body_blocks(architecture)
    before = digests_of(model)
    run(model, num_frozen, data=one_step())
    after = digests_of(model)
    assert after[:num_frozen] == before[:num_frozen]
    assert after[-1] != before[-1]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_published_mistake_in_freezing_is_refused(architecture, monkeypatch):
    """Gradients are off, but the frozen blocks are in training mode."""

    def freeze_gradients_only(start):
        for index, block in enumerate(start.model):
            block.requires_grad_(index >= start.num_frozen).train()

    monkeypatch.setattr(StartModel, "freeze", freeze_gradients_only)
    with pytest.raises(FrozenBlockChanged, match="block stem should have stayed frozen"):
        run(model_of(architecture), num_body_blocks(architecture), data=one_step())


def test_frozen_batchnorm_that_drifted_is_found_by_its_bytes(monkeypatch):
    def drift(start):
        start.model.train()
        start.model(torch.randn(4, 3, 32, 32))
        for index, block in enumerate(start.model):
            block.requires_grad_(index >= start.num_frozen).train(index >= start.num_frozen)

    monkeypatch.setattr(StartModel, "freeze", drift)
    with pytest.raises(FrozenBlockChanged, match="block stem should have stayed frozen: expected digest"):
        run(model_of("resnet18"), num_frozen=9, data=one_step())


@pytest.mark.parametrize("views", [2, None])
def test_augmented_views_leave_frozen_blocks_as_they_are(views):
    model = model_of("resnet18")
    before = digests_of(model)
    run(model, 8, TrainConfig(epochs=2, batch_size=8, views=views), one_step(8))
    assert digests_of(model)[:8] == before[:8]


def test_a_base_with_another_frozen_block_is_refused():
    model = model_of("resnet18")
    digests = digests_of(model)
    digests[3] = "0" * 64
    with pytest.raises(FrozenBlockChanged, match=r"block layer2.0 .*expected digest 000000000000"):
        run(model, num_frozen=5, digests=digests)


def test_an_easy_task_is_learned_and_every_epoch_reported():
    reported = []
    result = run(
        model_of("resnet18"),
        0,
        TrainConfig(epochs=4, batch_size=8, lr=1e-3),
        on_epoch=lambda entry, save: reported.append(entry),
    )
    assert reported == result.history
    assert [entry["epoch"] for entry in reported] == [1, 2, 3, 4]
    assert result.metrics["val_accuracy"] == 1.0
    assert result.metrics["test_accuracy"] == 1.0


def test_the_kept_weights_are_those_of_the_best_epoch(monkeypatch):
    reported = iter([0.5, 0.9, 0.7, 0.1])
    seen = []

    def evaluate(trained, feed, terms, into=None):
        seen.append(block_digest(trained[-1].tensors()))
        accuracy = next(reported)
        return {"loss": 1.0, "accuracy": accuracy, "top5_accuracy": 1.0}

    monkeypatch.setattr(finetune, "evaluate_with", evaluate)
    model = model_of("resnet18")
    result = run(model, 8, TrainConfig(epochs=3, batch_size=8))
    assert result.metrics["best_epoch"] == 2
    assert result.metrics["val_accuracy"] == 0.9
    assert block_digest(model[-1].tensors()) == seen[1] != seen[2]
    assert seen[3] == seen[1], "test is looked at with the kept weights"


def test_equal_seeds_give_equal_bytes():
    digests = []
    for _ in range(2):
        model = model_of("efficientnet_b0")
        run(model, 12, TrainConfig(epochs=1, batch_size=8, views=2))
        digests.append([block_digest(block.tensors()) for block in model])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_trains_only_what_is_not_frozen(optimizer):
    model = model_of("resnet18")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model, 9, TrainConfig(epochs=1, batch_size=8, optimizer=optimizer, weight_decay=0.1))
    changed = {
        name.partition(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"9"}


@pytest.mark.parametrize(("statistics", "is_kept"), [("keep", True), ("learn", False)])
def test_the_statistics_of_batches_can_be_kept(statistics, is_kept):
    model = model_of("resnet18")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model, 5, TrainConfig(epochs=2, batch_size=8, batch_statistics=statistics))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("running" in name for name in changed) != is_kept
    assert any(".bn" in name and name.endswith("weight") for name in changed), "scales are trained in any case"


def test_a_diverged_loss_stops_the_training_with_its_reason():
    with pytest.raises(TrainingDiverged, match="smaller train.lr than 100"):
        run(model_of("resnet18"), 0, TrainConfig(epochs=30, batch_size=8, lr=100, optimizer="sgd"))


def test_a_last_batch_of_one_item_joins_the_one_before():
    result = run(model_of("resnet18"), 0, TrainConfig(epochs=1, batch_size=8), data=splits(num_train=17))
    assert result.history[0]["train_loss"] > 0


def test_evaluation_restores_modes_and_changes_nothing():
    model = model_of("resnet18")
    StartModel(model, 4, ()).freeze()
    before = [block_digest(block.tensors()) for block in model]
    scores = evaluation.evaluate(model, coloured_squares(10, 1), PREPROCESSING, 4)
    assert [block.training for block in model] == [False] * 4 + [True] * 6
    assert [block_digest(block.tensors()) for block in model] == before
    assert 0 <= scores["accuracy"] <= scores["top5_accuracy"] == 1.0


def test_scores_do_not_depend_on_the_batch_size():
    model = model_of("resnet18")
    items = coloured_squares(11, 1)
    whole, parts = (evaluation.evaluate(model, items, PREPROCESSING, size) for size in (11, 3))
    assert whole["accuracy"] == parts["accuracy"]
    assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-4)


# Caching


@pytest.mark.parametrize(("num_frozen", "depth", "views"), [(1, 1, 1), (8, 8, 2), (8, 3, 1), (9, 9, 2)])
def test_cached_frozen_blocks_train_what_uncached_ones_do(tmp_path, num_frozen, depth, views):
    """To rounding: convolutions add up in another order in batches of another size, which fills are."""
    config = TrainConfig(epochs=3, batch_size=8, lr=1e-4, views=views)
    uncached, filling, filled = (model_of("resnet18") for _ in range(3))
    plain = run(uncached, num_frozen, config, one_step(16))
    results = [
        run(model, num_frozen, config, one_step(16), prefix=cache_in(tmp_path, depth)) for model in (filling, filled)
    ]
    assert digests_of(filling) == digests_of(filled)
    assert results[0].metrics == results[1].metrics
    for one, other in zip(uncached.parameters(), filled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert plain.history[0]["train_loss"] == pytest.approx(results[0].history[0]["train_loss"], rel=1e-3)


def test_trials_share_fixed_views_of_one_views_seed(tmp_path):
    for seed in (1, 2):
        config = TrainConfig(epochs=2, batch_size=8, views=2)
        run(model_of("resnet18"), 9, config, one_step(8), prefix=cache_in(tmp_path, 9), seed=seed, views_seed=0)
    place = cache_in(tmp_path, 9).place
    assert len(list(place.glob("*/"))) == 3, "two views of train, and val"


def test_changed_blocks_are_refused_before_the_cache_is_filled(tmp_path):
    model = model_of("resnet18")
    digests = digests_of(model)
    with torch.no_grad():
        model[0].steps[0].weight[0] = 1
    with pytest.raises(FrozenBlockChanged, match="block stem"):
        run(model, 9, digests=digests, prefix=cache_in(tmp_path, 9))
    assert not any(any(path.read_bytes()) for path in cache_in(tmp_path, 9).place.rglob("index.bin"))


# Going on


@pytest.mark.parametrize(
    ("architecture", "num_frozen", "killed_after", "changes"),
    [
        ("efficientnet_b0", 14, 1, {"views": 2}),
        ("resnet18", 7, 2, {"optimizer": "sgd", "views": None}),
        ("resnet18", 9, 1, {"precision": "float16"}),
        ("resnet18", 8, 2, {"schedule": "cosine", "warmup_epochs": 1.5, "layer_lrs": (1e-3, 1e-4), "ema_decay": 0.9}),
        ("resnet18", 8, 1, {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "micro_batch_size": 3, "clip_norm": 0.5}),
        ("resnet18", 8, 1, {"patience": 1, "monitor": "val_loss", "lr": 0.5, "optimizer": "sgd", "epochs": 9}),
    ],
)
def test_a_killed_fine_tune_resumes_as_if_undisturbed(tmp_path, architecture, num_frozen, killed_after, changes):
    config = TrainConfig(**{"epochs": 3, "batch_size": 8, "deterministic": True, "checkpoint_every": 1} | changes)

    def save_and_die(entry, save):
        save(tmp_path)
        if entry["epoch"] == killed_after:
            raise Killed

    never, killed, resumed = (model_of(architecture) for _ in range(3))
    expected = run(never, num_frozen, config, one_step(16))
    with pytest.raises(Killed):
        run(killed, num_frozen, config, one_step(16), on_epoch=save_and_die)
    found = run(resumed, num_frozen, config, one_step(16), resume_dir=tmp_path)
    assert digests_of(resumed) == digests_of(never)
    assert found.metrics == expected.metrics
    assert without_times(found.history) == without_times(expected.history)


def test_checkpoints_come_when_due_with_only_trained_blocks(tmp_path):
    due = {}

    def report(entry, save):
        due[entry["epoch"]] = save
        if save and entry["epoch"] == 2:
            save(tmp_path / "going-on")

    model = model_of("resnet18")
    run(model, 8, TrainConfig(epochs=5, batch_size=24, checkpoint_every=2), on_epoch=report)
    assert [epoch for epoch, save in due.items() if save] == [2, 4, 5]
    due[5](tmp_path / "last")
    files = {folder: {str(path.relative_to(tmp_path / folder)) for path in (tmp_path / folder).rglob("*.*")}
             for folder in ("going-on", "last")}  # fmt: skip
    best = {"best/layer4.1.safetensors", "best/head.safetensors"}
    assert files["last"] == best
    assert files["going-on"] == best | {"state.pt", "last/layer4.1.safetensors", "last/head.safetensors"}
    kept = decode(memoryview(bytearray((tmp_path / "last/best/head.safetensors").read_bytes())), "head")
    assert block_digest(kept) == digests_of(model)[-1]


@pytest.mark.parametrize("fault", ["nothing there", "state cut", "another trial's"])
def test_what_is_no_checkpoint_to_go_on_from_is_refused(tmp_path, fault):
    config = TrainConfig(epochs=2, batch_size=24, checkpoint_every=1)
    if fault != "nothing there":
        run(model_of("resnet18"), 9, config, on_epoch=lambda entry, save: entry["epoch"] == 1 and save(tmp_path))
    if fault == "state cut":
        (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:1000])
    with pytest.raises(WeightsError, match="expected the (state|trained block)"):
        run(model_of("resnet18"), 8 if fault == "another trial's" else 9, config, resume_dir=tmp_path)


# What goes wrong


@pytest.mark.parametrize("poisoned", ["loss", "score", "weight"])
def test_a_fine_tune_that_diverged_ends_before_it_is_reported(monkeypatch, poisoned):
    run_epoch, evaluate, reported = UpdateStep.run_epoch, evaluation.evaluate_with, []

    def train(step, feed):
        loss = run_epoch(step, feed)
        if reported and poisoned == "weight":
            with torch.no_grad():
                step.state.trained[-1].steps[-1].weight[0, 0] = math.inf
        return math.nan if reported and poisoned == "loss" else loss

    def score(*arguments):
        scores = evaluate(*arguments) if not reported or poisoned != "weight" else dict.fromkeys(scores_of_before, 1.0)
        scores_of_before.update(scores)
        return scores | ({"loss": math.nan} if reported and poisoned == "score" else {})

    scores_of_before = {}
    monkeypatch.setattr(UpdateStep, "run_epoch", train)
    monkeypatch.setattr(finetune, "evaluate_with", score)
    with pytest.raises(
        TrainingDiverged, match=r"(train_loss became nan|val_loss became nan|fc\.weight became not fin)"
    ):
        run(
            model_of("resnet18"),
            9,
            TrainConfig(epochs=3, batch_size=24),
            on_epoch=lambda entry, save: reported.append(1),
        )
    assert len(reported) == 1


def allocate_too_much():
    torch.empty(2**55, dtype=torch.uint8)


def run_out_of_memory():
    raise MemoryError


def run_out_of_gpu_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def go_wrong(*_):
    raise RuntimeError("shapes differ")


@pytest.mark.parametrize("fail", [allocate_too_much, run_out_of_memory, run_out_of_gpu_memory])
def test_the_out_of_memory_error_holds_no_memory(monkeypatch, fail):
    states = []

    def run_epoch(step, feed):
        states.append(weakref.ref(step.state))
        fail()

    monkeypatch.setattr(UpdateStep, "run_epoch", run_epoch)
    with pytest.raises(OutOfMemory, match=r"on cpu: .*train\.batch_size 8 .*try a smaller train\.batch_size"):
        run(model_of("resnet18"), 9)
    assert states[0]() is None


def test_another_runtime_error_stays_what_it_is(monkeypatch):
    monkeypatch.setattr(UpdateStep, "run_epoch", go_wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(model_of("resnet18"), 9)


# How it computes


@pytest.mark.parametrize(
    ("changes", "num_frozen"),
    [
        ({"precision": "bfloat16"}, 8),
        ({"precision": "float16"}, 9),
        ({"channels_last": True}, 7),
        ({"deterministic": True}, 7),
    ],
    ids=str,
)
def test_every_precision_learns_and_leaves_float32_blocks(tmp_path, changes, num_frozen):
    model = model_of("resnet18")
    before = digests_of(model)
    config = TrainConfig(epochs=2, batch_size=8, **changes)
    result = run(model, num_frozen, config, one_step(16), prefix=cache_in(tmp_path, num_frozen))
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert digests_of(model)[:num_frozen] == before[:num_frozen]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_cpu_computes_in_float32_unless_reported_otherwise():
    cpu = torch.device("cpu")
    assert Numerics.choose(TrainConfig(), cpu) == Numerics(cpu, torch.float32, channels_last=False)
    names = ("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "resnet18", "vit_b_32")
    layouts = [Numerics.choose(TrainConfig(), cpu, name).channels_last for name in names]
    assert layouts == [True, True, True, True, False, False]
    assert not Numerics.choose(TrainConfig(channels_last=False), cpu, "mobilenet_v2").channels_last
    reported = TrainConfig(precision="bfloat16", channels_last=True, deterministic=True)
    assert Numerics.choose(reported, cpu) == Numerics(cpu, torch.bfloat16, channels_last=True, deterministic=True)


def test_only_trained_blocks_are_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append([block.name for block in module]) or module)
    run(model_of("resnet18"), 9, TrainConfig(epochs=1, batch_size=24, compile=True))
    assert compiled == [["head"]]


TWO_WORKERS = """
    import sys, torch
    from pathlib import Path
    from torch import distributed
    from torchvision.ops import StochasticDepth
    sys.path.insert(0, {tests!r})
    from tests.support.small_finetunes import cache_in, digests_of, model_of, run, without_times, coloured_squares
    from raysnap.config.train import TrainConfig
    from raysnap.training.worker import Worker

    def train(architecture, num_frozen, depth, folder, worker):
        model = model_of(architecture)
        for module in model.modules():
            if isinstance(module, StochasticDepth):
                module.p = 0.0
        data = {{name: coloured_squares(count, count) for name, count in (("train", 13), ("val", 9), ("test", 7))}}
        config = TrainConfig(epochs=2, batch_size=5, lr=1e-3, optimizer="sgd", checkpoint_every=1, views=2)
        def report(entry, save):
            if worker.rank == 0:
                save(folder / str(entry["epoch"]))
        result = run(model, num_frozen, config, data, report, prefix=cache_in(folder, depth), worker=worker)
        torch.save([model.state_dict(), result.metrics, without_times(result.history)], folder / f"{{worker.rank}}.pt")

    torch.set_num_threads(1)
    rank, folder = int(sys.argv[1]), Path({folder!r})
    distributed.init_process_group("gloo", init_method=f"file://{{folder}}/meet", rank=rank, world_size=2)
    for case in {cases!r}:
        train(*case, folder / case[0] / "shared", Worker(rank, 2))
        distributed.barrier()
    distributed.destroy_process_group()
    for case in {cases!r} if rank == 0 else ():
        train(*case, folder / case[0] / "alone", Worker())
"""
SHARED_CASES = (("resnet18", 9, 9), ("convnext_tiny", 17, 12))


@pytest.fixture(scope="module")
def trained_twice(tmp_path_factory) -> Path:
    """Return a folder per case, with what two workers made of it and what one did, in `shared` and `alone`."""
    folder = tmp_path_factory.mktemp("two_workers")
    for architecture, *_ in SHARED_CASES:
        for name in ("shared", "alone"):
            (folder / architecture / name).mkdir(parents=True)
    facts = {"tests": str(ROOT), "folder": str(folder), "cases": SHARED_CASES}
    script = folder / "two_workers.py"
    script.write_text(textwrap.dedent(TWO_WORKERS.format(**facts)))
    processes = [
        subprocess.Popen([sys.executable, script, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)
    ]
    faults = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], faults
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("architecture", [case[0] for case in SHARED_CASES])
def test_two_workers_train_what_one_does(trained_twice, architecture):
    alone, shared = trained_twice / architecture / "alone", trained_twice / architecture / "shared"
    (first, metrics, history), other, one = (
        torch.load(path, weights_only=True) for path in (shared / "0.pt", shared / "1.pt", alone / "0.pt")
    )
    assert all(torch.equal(first[name], other[0][name]) for name in first)
    assert (metrics, history) == (other[1], other[2])
    for name, tensor in one[0].items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-5)
    for entry, expected in zip([*history, metrics], [*one[2], one[1]], strict=True):
        assert entry == pytest.approx(expected, rel=1e-3)
    assert len(torch.load(shared / "1" / "state.pt", weights_only=True)["random_states"]) == 2
