"""From a store and a dataset to a ranking: the loop over a method's rungs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from raysnap.atomic import cache_place
from raysnap.config.choices import Method, Precision, Proxy
from raysnap.config.load import ShapesConfig
from raysnap.datasets.dataset import Dataset, find_dataset, open_dataset
from raysnap.errors import UsageError
from raysnap.models.blocks import HEAD
from raysnap.search.contest import Contest
from raysnap.search.engine.cached_source import CachedSource
from raysnap.search.engine.feature_cache import FeatureCache
from raysnap.search.engine.items import ProbeItems
from raysnap.search.engine.setup import Setup, open_executor
from raysnap.search.engine.source import FeatureSource, Work
from raysnap.search.plan.tree import Candidate, PrefixTree, build_tree
from raysnap.search.plan.walk import plan_rungs, shares_prefixes
from raysnap.search.probes.confidence import LEVEL
from raysnap.search.result import RankedSnapshot, SearchResult, SkippedSnapshot
from raysnap.store.manifest import Manifest, Preprocessing
from raysnap.store.store import Store

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


def check_question(store_dir: Path, data: str, data_dir: Path, where: str | None) -> None:
    """Passes when there is a store with candidates, and a dataset; nothing is written.

    Raises:
        RaysnapError: there is not.
    """
    find_candidates(Store.open(store_dir), where, None)
    if find_dataset(data, data_dir) is not None:
        open_dataset(data, data_dir)


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


def pick_static_baseline(candidates: Sequence[Candidate], ranking: Sequence[RankedSnapshot]) -> RankedSnapshot | None:
    """Where the snapshot came that one would take without a search: the largest pretrained model.

    That is, of the ranked snapshots that derive from no other one (of all, where each derives from another), the one
    with the most bytes of weights below the head, and of several the one that comes first by id.
    """
    by_id = {candidate.snapshot: candidate for candidate in candidates}

    def preference(entry: RankedSnapshot) -> tuple:
        candidate = by_id[entry.snapshot]
        return not candidate.is_base, -sum(block.num_bytes for block in candidate.blocks), entry.snapshot

    return min(ranking, key=preference, default=None)


def find_candidates(store: Store, where: str | None, image_size: int | None) -> list[Candidate]:
    """The snapshots that a search ranks, in the order of their ids.

    Raises:
        UsageError: the store has none, or none that fits `where`.
    """
    manifests = store.manifests(where)
    if not manifests:
        wanted = f" that fit --where {where!r}" if where else ""
        raise UsageError(
            f"{store.path}: expected at least one snapshot to rank, found none{wanted}; add some with `raysnap "
            "generate` or `raysnap store add`"
        )
    names = {snapshot: name for name, snapshot in sorted(store.refs().items(), reverse=True)}
    return [
        Candidate(
            snapshot=manifest.id,
            name=names.get(manifest.id, manifest.id[:12]),
            architecture=manifest.architecture,
            preprocessing=_preprocessing(manifest, image_size),
            blocks=tuple(block for block in manifest.blocks if block.name != HEAD),
            is_base=manifest.base is None,
        )
        for manifest in sorted(manifests, key=lambda manifest: manifest.id)
    ]


def _preprocessing(manifest: Manifest, image_size: int | None) -> Preprocessing:
    """The snapshot's own preprocessing, scaled to another edge where one is asked for."""
    own = manifest.preprocessing
    if image_size is None or image_size == own.image_size:
        return own
    resize_size = round(own.resize_size * image_size / own.image_size)
    return own.model_copy(update={"image_size": image_size, "resize_size": resize_size})
