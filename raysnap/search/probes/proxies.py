"""Score features cheaply, as a proxy of fine-tuned accuracy.

Every proxy is a function from many candidates' features of the same train and test items to a `Score` each, with every
item's contribution, so that candidates can be compared item by item. On CPUs a candidate's score is the same to the
bit, whatever other candidates are in the call: each is scored on one thread, as many at once as torch has threads. In
lock-step, where calls cost more than their work, go candidates of equal width: of `linear`, on CPUs as many as a core's
cache holds, and on a GPU of `sgd_linear` too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from raysnap.config.choices import Proxy
from raysnap.search.probes.axes import span_root
from raysnap.search.probes.logistic import fit_logistic_regressions, whole_lines
from raysnap.search.probes.score import Array, ProbeBatch, Score, score_logits
from raysnap.search.probes.transferability import hscore, logme

NUM_NEIGHBOURS = 5
SGD_EPOCHS, SGD_LR, SGD_BATCH_ITEMS = 100, 0.1, 128

# With fewer numbers for each, further threads wait longer for Python's lock than they compute.
THREAD_NUMBERS = 50_000
# Candidates of one shape that a GPU takes at once: bounds its memory.
MAX_LOCK_STEP = 64
# Numbers of the square matrices that a core of a CPU takes at once. The more in a call, the less threads wait for
# Python's lock between calls; still larger ones leave its cache.
LOCK_STEP_NUMBERS = 500_000
# Numbers of the features that a core of a CPU takes at once, in double precision and some times: bounds its memory.
FEATURE_NUMBERS = 2**21

CPU = torch.device("cpu")


def linear(batch: ProbeBatch, seed: int) -> list[Score]:  # noqa: ARG001
    """Score by multinomial logistic regressions, converged.

    Features are standardised with the train items' mean and deviation; the penalty is half the squared weights, once
    for the sum of all items' losses (scikit-learn's C = 1). The optimum is in the span of the train items, and is
    searched there if these are fewer than the dimensions. See `logistic` for when a regression has converged.
    """
    train_BND, train_labels_BN, test_BTD, test_labels_BT = batch
    classes, targets_BN = _number_classes(train_labels_BN)
    _, num_items, num_dims = train_BND.shape
    train_BND, test_BTD = (_in_whole_lines(features).double() for features in (train_BND, test_BTD))
    mean_B1D = train_BND.mean(dim=1, keepdim=True)  # `torch.std_mean` takes 10 times as long
    inputs_BND = train_BND - mean_B1D
    deviation_B1D = inputs_BND.square().mean(dim=1, keepdim=True).sqrt()
    # A feature that is constant up to float32's rounding has no information: it becomes 0 everywhere.
    deviation_B1D[deviation_B1D <= 1e-6 * mean_B1D.abs()] = torch.inf
    inputs_BND /= deviation_B1D
    targets = torch.from_numpy(targets_BN).to(inputs_BND.device)
    if num_items < num_dims:
        root_BNN = span_root(_in_whole_lines(inputs_BND, dim=1))[:, :num_items, :num_items]
        weights_BCN, bias_BC = fit_logistic_regressions(root_BNN, targets, len(classes))
        shares_BCN = torch.linalg.solve_triangular(root_BNN, weights_BCN, upper=False, left=False)
        weights_BCD = shares_BCN @ inputs_BND
    else:
        weights_BCD, bias_BC = fit_logistic_regressions(inputs_BND, targets, len(classes))
    weights_BCD = weights_BCD / deviation_B1D
    # Products with a single column round differently in a batch and alone: there is none here, even for one test item.
    bias_BC1 = bias_BC[..., None] - (weights_BCD * mean_B1D).sum(dim=2, keepdim=True)
    logits_BCT = weights_BCD @ _in_whole_lines(test_BTD, dim=1).mT + bias_BC1
    logits_BTC = logits_BCT[..., : test_BTD.shape[1]].mT
    return _score_logits(logits_BTC, classes, test_labels_BT)


def sgd_linear(batch: ProbeBatch, seed: int) -> list[Score]:
    """Score by linear layers trained as in the published protocol: SGD, lr 0.1, 100 epochs, batches of 128.

    The layers start as torch's do, and all see the items in the same order. Features are taken as they are, so at this
    rate the descent is stable only for short ones: of norm 9 or less it converges, of norm 29 to 39 (untrained
    ResNet-18) it jumps about, and rounding decides the score. On standardised features it would score as `linear` does.
    """
    train_BND, train_labels_BN, test_BTD, test_labels_BT = batch
    classes, targets_BN = _number_classes(train_labels_BN)
    num_problems, num_items, num_dims = train_BND.shape
    generator = torch.Generator().manual_seed(seed)
    weight_CD, bias_C = _initial_layer(num_dims, len(classes), seed)
    weight_BCD = weight_CD.to(train_BND).repeat(num_problems, 1, 1)
    bias_BC1 = bias_C.to(train_BND).repeat(num_problems, 1)[..., None]
    one_hot_BNC = nn.functional.one_hot(torch.from_numpy(targets_BN), len(classes)).to(train_BND)
    for _ in range(SGD_EPOCHS):
        order = torch.randperm(num_items, generator=generator).to(train_BND.device)
        shuffled_BND, shuffled_BCN = train_BND[:, order], one_hot_BNC[:, order].mT
        for start in range(0, num_items, SGD_BATCH_ITEMS):
            batch_BND = shuffled_BND[:, start : start + SGD_BATCH_ITEMS]
            logits_BCN = torch.baddbmm(bias_BC1, weight_BCD, batch_BND.mT)
            error_BCN = torch.softmax(logits_BCN, dim=1) - shuffled_BCN[..., start : start + SGD_BATCH_ITEMS]
            rate = SGD_LR / batch_BND.shape[1]
            weight_BCD.baddbmm_(error_BCN, batch_BND, alpha=-rate)
            bias_BC1.sub_(error_BCN.sum(dim=2, keepdim=True), alpha=rate)
    logits_BTC = torch.baddbmm(bias_BC1.mT, test_BTD, weight_BCD.mT).double().cpu()
    return _score_logits(logits_BTC, classes, test_labels_BT)


def knn(batch: ProbeBatch, seed: int) -> list[Score]:  # noqa: ARG001
    """Score by the most frequent class among an item's nearest train items, by the cosine of their features.

    There are 5 neighbours, fewer where classes have fewer train items on average. Of equally near train
    items the earlier counts, of classes with equally many neighbours the first. A class's probability, for the loss,
    is its share of the neighbours after one more of each class.
    """
    train_BND, train_labels_BN, test_BTD, test_labels_BT = batch
    classes, targets_BN = _number_classes(train_labels_BN)
    num_neighbours = min(NUM_NEIGHBOURS, max(1, targets_BN.shape[1] // len(classes)))
    cosines_BTN = _normalised(test_BTD) @ _normalised(train_BND).mT
    nearest_BTK = cosines_BTN.argsort(dim=2, descending=True, stable=True)[..., :num_neighbours].cpu().numpy()
    targets_BTK = np.take_along_axis(targets_BN[:, None], nearest_BTK, axis=2)
    votes_BTC = np.eye(len(classes))[targets_BTK].sum(axis=2)
    return _score_logits(torch.from_numpy(np.log1p(votes_BTC)), classes, test_labels_BT)


BatchProxy = Callable[[ProbeBatch, int], list[Score]]

PROXIES: dict[Proxy, BatchProxy] = {
    "linear": linear,
    "sgd_linear": sgd_linear,
    "knn": knn,
    "hscore": hscore,
    "logme": logme,
}


class ProbeSet(NamedTuple):
    """What probes of several candidates are fitted and scored on.

    Attributes:
        train_features: each candidate's features of the train items, float32 `[N, D]`; widths may differ.
        train_labels_N: the train items' classes.
        test_features: each candidate's features of the test items, float32 `[T, D]`.
        test_labels_T: the test items' classes.
    """

    train_features: Sequence[Array]
    train_labels_N: Array
    test_features: Sequence[Array]
    test_labels_T: Array


def score_candidates(
    proxy: Proxy,
    train_features: Sequence[Array],
    train_labels_N: Array,
    test_features: Sequence[Array],
    test_labels_T: Array,
    seed: int,
    device: torch.device = CPU,
) -> list[Score]:
    """Score each candidate by a proxy, in the given order.

    Args:
        train_features: each candidate's features of the train items, float32 `[N, D]`; widths may differ.
        test_features: the same of the test items, `[T, D]`.
        device: where the work is done.
    """
    probes = ProbeSet(train_features, train_labels_N, test_features, test_labels_T)
    (scores,) = score_splits(proxy, probes, [np.zeros(len(train_labels_N), bool)], seed, device)
    return scores


def score_splits(
    proxy: Proxy, probes: ProbeSet, held_out: Sequence[Array], seed: int, device: torch.device = CPU
) -> list[list[Score]]:
    """Score each candidate once per split, by what is fitted without the train items that the split holds out.

    Args:
        held_out: which train items each split holds out, bool `[N]`; it is scored on them before the test items.

    Returns:
        The candidates' scores of each split.
    """
    train_labels_N = probes.train_labels_N
    labels = [
        (train_labels_N[~is_held_out_N], np.concatenate([train_labels_N[is_held_out_N], probes.test_labels_T]))
        for is_held_out_N in held_out
    ]
    problems = [_Problem(split, number) for split in range(len(labels)) for number in range(len(probes.train_features))]

    def score_batch(batch: list[_Problem]) -> list[Score]:
        trains_ND, tests_TD = [], []
        for split, number in batch:
            train_ND, is_held_out_N = probes.train_features[number], held_out[split]
            trains_ND.append(train_ND[~is_held_out_N])
            tests_TD.append(np.concatenate([train_ND[is_held_out_N], probes.test_features[number]]))
        train_BND, test_BTD = (torch.from_numpy(np.stack(some)).to(device) for some in (trains_ND, tests_TD))
        train_labels_BN, test_labels_BT = (
            np.stack(some) for some in zip(*(labels[split] for split, _ in batch), strict=True)
        )
        return PROXIES[proxy](ProbeBatch(train_BND, train_labels_BN, test_BTD, test_labels_BT), seed)

    kinds = []
    for split, number in problems:
        train_labels_N, test_labels_T = labels[split]
        width = probes.train_features[number].shape[1]
        kinds.append(_Kind(len(train_labels_N), width, len(test_labels_T), tuple(np.unique(train_labels_N))))
    num_numbers = sum(_num_numbers(proxy, kind) for kind in kinds)
    with _one_thread_each(device) as num_threads:
        num_threads = max(1, min(num_threads, num_numbers // THREAD_NUMBERS))
        batches = list(_batches(proxy, problems, kinds, device, num_threads))
        scored: Iterator[list[Score]]
        if num_threads == 1:
            scored = map(score_batch, batches)
        else:
            # torch's number of threads holds for the thread that set it; in a new one MKL takes all cores.
            with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                scored = pool.map(score_batch, batches)
        score_of = dict(zip(chain.from_iterable(batches), chain.from_iterable(scored), strict=True))
    return [
        [score_of[_Problem(split, number)] for number in range(len(probes.train_features))]
        for split in range(len(labels))
    ]


class _Problem(NamedTuple):
    """A candidate, scored on one split."""

    split: int
    number: int


class _Kind(NamedTuple):
    """What problems that are solved in lock-step have in common."""

    num_train: int
    num_dims: int
    num_test: int
    classes: tuple[int, ...]


def _batches(
    proxy: Proxy, problems: Sequence[_Problem], kinds: Sequence[_Kind], device: torch.device, num_threads: int
) -> Iterator[list[_Problem]]:
    """Yield the problems that are solved together, of one kind: as many as fit, but no more than a thread's part."""
    by_kind: dict[_Kind, list[_Problem]] = defaultdict(list)
    for problem, kind in zip(problems, kinds, strict=True):
        by_kind[kind].append(problem)
    for kind, alike in by_kind.items():
        if device.type != "cpu":
            num_together = MAX_LOCK_STEP
        elif proxy == "linear":
            num_features = (kind.num_train + kind.num_test) * kind.num_dims
            most = min(LOCK_STEP_NUMBERS // _num_numbers(proxy, kind), FEATURE_NUMBERS // num_features)
            num_together = max(1, min(most, math.ceil(len(alike) / num_threads)))
        else:
            num_together = 1
        yield from (alike[start : start + num_together] for start in range(0, len(alike), num_together))


def _num_numbers(proxy: Proxy, kind: _Kind) -> int:
    """Return how many numbers a proxy works on; `linear` takes the smaller of two equal problems."""
    return kind.num_train * (min(kind.num_train, kind.num_dims) if proxy == "linear" else kind.num_dims)


@contextmanager
def _one_thread_each(device: torch.device) -> Iterator[int]:
    """Yield how many candidates to score at once; on a CPU as many as torch has threads, one thread each."""
    if device.type != "cpu":
        yield 1
        return
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield num_threads
    finally:
        torch.set_num_threads(num_threads)


def _initial_layer(num_dims: int, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the weight `[C, D]` and bias `[C]` that `nn.Linear` starts with after `torch.manual_seed(seed)`."""
    generator = torch.Generator().manual_seed(seed)
    weight_CD = nn.init.kaiming_uniform_(torch.empty(num_classes, num_dims), a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(num_dims)
    return weight_CD, nn.init.uniform_(torch.empty(num_classes), -bound, bound, generator=generator)


def _number_classes(labels_BN: Array) -> tuple[Array, Array]:
    """Return the classes, which all problems have in common, and each item's class as its number, `[B, N]`."""
    classes = np.unique(labels_BN)
    return classes, np.searchsorted(classes, labels_BN)


def _score_logits(logits_BTC: Tensor, classes: Array, labels_BT: Array) -> list[Score]:
    all_TC = logits_BTC.cpu().numpy()
    return [score_logits(logits_TC, classes, labels_T) for logits_TC, labels_T in zip(all_TC, labels_BT, strict=True)]


def _in_whole_lines(features_BND: Tensor, dim: int = 2) -> Tensor:
    """Return the features with zeros after the last item (`dim` 1) or dimension (2), up to whole cache lines."""
    num_more = whole_lines(features_BND.shape[dim]) - features_BND.shape[dim]
    if not num_more:
        return features_BND
    return nn.functional.pad(features_BND, (0, num_more) if dim == 2 else (0, 0, 0, num_more))


def _normalised(features_BND: Tensor) -> Tensor:
    """Return the features scaled to length 1, float64; those of length 0 unchanged."""
    features_BND = features_BND.double()
    lengths_BN1 = torch.linalg.vector_norm(features_BND, dim=2, keepdim=True)
    return features_BND / torch.where(lengths_BN1 > 0, lengths_BN1, 1.0)
