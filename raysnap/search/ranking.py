"""From a store and a dataset to a ranking: the loop over a method's rungs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from raysnap.config.choices import Method, Precision, Proxy
from raysnap.config.parts import ShapesConfig
from raysnap.datasets.dataset import Dataset
from raysnap.errors import UsageError
from raysnap.search.candidates import find_candidates, pick_static_baseline
from raysnap.search.contest import Contest
from raysnap.search.engine.cached_source import CachedSource
from raysnap.search.engine.feature_cache import FeatureCache
from raysnap.search.engine.items import ProbeItems
from raysnap.search.engine.setup import Setup, open_executor
from raysnap.search.engine.source import FeatureSource
from raysnap.search.engine.work import Work
from raysnap.search.plan.rungs import plan_rungs, shares_prefixes
from raysnap.search.plan.tree import PrefixTree, build_tree
from raysnap.search.probes.confidence import LEVEL
from raysnap.search.result import SearchResult, SkippedSnapshot
from raysnap.store.store import Store
from raysnap.system import cache_place

STAGES = ("plan", "load_blocks", "decode", "inference", "proxy")


def search(
    store: Store | Path | str,
    data: str | Path,
    *,
    method: Method = "nested",
    proxy: Proxy = "linear",
    confidence: float = LEVEL,
    num_train: int | None = None,
    num_test: int | None = None,
    image_size: int | None = None,
    budget_bytes: int | None = None,
    where: str | None = None,
    seed: int = 0,
    data_dir: Path = Path("data"),
    shapes: ShapesConfig | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    deterministic: bool = False,
    workers: int = 1,
    feature_cache_bytes: int = 0,
) -> SearchResult:
    """The store's snapshots in the order in which they promise to be good starts for a dataset.

    Args:
        store: an open store or the folder of one.
        data: a dataset's name in `data_dir`, or the path of an ImageFolder.
        confidence: how sure `nested` must be, over all its rungs, that whoever it drops would not come first on all
            items, at least 0 and below 1; with 0 a rung drops all but its upper half. Other methods take no notice.
        num_train: how many train items to probe on, a stratified subset; None is all.
        num_test: how many items to score on; None is all.
        image_size: edge of the pixels shown to the models; None is what each snapshot was trained with.
        budget_bytes: bound on the activations held at once; None is no limit.
        where: which snapshots are candidates, for example `"architecture == 'resnet18' and accuracy > 0.8"`.
        device: a torch device; None is the GPU where there is one.
        precision: what blocks compute in; auto is bfloat16 where the device multiplies it in hardware, float16 on
            older GPUs, else float32. Probes are fitted in float64 in any case.
        deterministic: only deterministic kernels, so that a GPU too gives equal searches equal scores to the last bit.
        workers: how many processes compute; more than one are actors of the Ray that is up, each with a GPU, where
            there are any, and its part of the CPUs.
        feature_cache_bytes: bound on what is kept beside the dataset for the next searches of it: features, and
            activations where snapshots may branch off; 0 neither reads nor keeps any.

    Raises:
        UsageError: no candidates, an unknown method or proxy, a confidence out of range, or a budget that is too small.
        DataError: the dataset is missing or too small.
        StoreError: the store can't be opened.
    """
    started = time.perf_counter()
    _check(method, proxy, confidence, workers)
    store = store if isinstance(store, Store) else Store.open(Path(store))
    candidates = find_candidates(store, where, image_size)
    setup = Setup(
        store=store.path,
        data=str(data),
        data_dir=data_dir,
        shapes=shapes,
        seed=seed,
        num_train=num_train,
        num_test=num_test,
        device=device,
        precision=precision,
        deterministic=deterministic,
        is_sharing=shares_prefixes(method),
        budget_bytes=budget_bytes,
    )
    dataset, items = setup.open_items(candidates)
    planning = time.perf_counter()
    rungs = plan_rungs(method, len(candidates), len(items.train_labels), len(items.test_labels))
    tree = build_tree(candidates, sharing=setup.is_sharing)
    work = Work()
    work.timings_s["decode"] = items.decode_s
    work.timings_s["plan"] = time.perf_counter() - planning
    with _open_source(setup, store, tree, items, work, workers) as source:
        if feature_cache_bytes:
            cache = FeatureCache(cache_place(dataset.root, "features"), feature_cache_bytes)
            source = CachedSource(source, tree, items, len(items.positions), cache)
        contest = Contest(
            tree=tree,
            source=source,
            items=items,
            proxy=proxy,
            seed=seed,
            device=setup.pick_device(),
            confidence=confidence if method == "nested" else 0.0,
        )
        for num_later, rung in zip(reversed(range(len(rungs))), rungs, strict=True):
            contest.run_rung(rung, num_later=num_later)
    return _sum_up(contest, method, dataset, time.perf_counter() - started)


def _sum_up(contest: Contest, method: Method, dataset: Dataset, total_s: float) -> SearchResult:
    """What a contest that is over found."""
    candidates, items, work, ranking = contest.tree.candidates, contest.items, contest.source.work, contest.ranking()
    return SearchResult(
        method=method,
        proxy=contest.proxy,
        dataset=dataset.name,
        num_candidates=len(candidates),
        ranking=ranking,
        timings_s={"total": total_s} | dict.fromkeys(STAGES, 0.0) | dict(work.timings_s),
        work={
            "block_item_passes": work.block_item_passes,
            "flops": work.flops,
            "block_bytes_read": work.block_bytes_read,
            "images_decoded": items.num_decoded,
        },
        bound_s=work.bound_s + items.decode_s,
        precision=str(contest.source.dtype).removeprefix("torch."),
        peak_activation_bytes=work.peak_activation_bytes,
        skipped=tuple(
            SkippedSnapshot(candidates[number].snapshot, candidates[number].name, error)
            for number, error in sorted(contest.skipped.items())
        ),
        rungs=tuple(contest.reports),
        static_baseline=pick_static_baseline(candidates, ranking),
    )


def _check(method: str, proxy: str, confidence: float, workers: int) -> None:
    for what, given, known in (("method", method, get_args(Method)), ("proxy", proxy, get_args(Proxy))):
        if given not in known:
            raise UsageError(f"{what}: expected one of {', '.join(known)}, found {given!r}")
    if not 0 <= confidence < 1:
        raise UsageError(f"confidence: expected at least 0 and below 1, found {confidence}")
    if workers < 1:
        raise UsageError(f"workers: expected at least 1, found {workers}")


@contextmanager
def _open_source(
    setup: Setup, store: Store, tree: PrefixTree, items: ProbeItems, work: Work, workers: int
) -> Iterator[FeatureSource]:
    """Where the contest's features come from: this process, or workers on the Ray that is up."""
    if workers == 1:
        with open_executor(setup, store, tree, items, work) as executor:
            yield executor
    else:
        from raysnap.search.engine.fleet import Fleet  # ray takes seconds to import

        with Fleet(tree, setup, workers, work) as fleet:
            yield fleet
