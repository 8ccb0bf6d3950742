"""The datasets of a job: generated or opened, decoded or tokenised into a cache, and described to the trials."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from raysnap.config.folders import absolute
from raysnap.datasets.dataset import Dataset, open_dataset
from raysnap.datasets.layout.account import Account
from raysnap.jobs.job import Job
from raysnap.models.block_facts import text_facts
from raysnap.planning.generate import tokenizer_content
from raysnap.store.preprocessing import AnyPreprocessing, TextPreprocessing, tokenizer_object
from raysnap.store.store import Store
from raysnap.training.trial import slug
from raysnap.training.trial_loop import TrainJob, labelled_splits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobData:
    """The datasets that a job's trials name, by name.

    Attributes:
        num_items: how many items of each split are used.
        accounts: what was read of each dataset and what was not.
    """

    datasets: Mapping[str, Dataset]
    num_items: Mapping[str, Mapping[str, int]]
    accounts: tuple[Account, ...] = ()


def prepare_data(job: Job) -> JobData:
    """Generate the built-in datasets that are missing, and decode, or tokenise, every dataset into its cache.

    What is left out of a dataset, or is bad, is logged and becomes part of the run's record.

    Raises:
        DataError: a dataset can't be read or is too small.
    """
    put_tokenizers(job)
    datasets: dict[str, Dataset] = {}
    num_items: dict[str, dict[str, int]] = {}
    accounts: list[Account] = []
    trials, names = [*job.plan.bases, *job.plan.trials], list(job.plan.datasets)
    sampling = make_train_job(job, {}, {})
    for number, name in enumerate(names):
        job.on_progress("data", number, len(names), slug(name))
        datasets[name] = open_dataset(name, job.config.data_dir, job.config.shapes)
        sizes = dict.fromkeys(job.plan.preprocessing_of(trial) for trial in trials if trial.dataset == name)
        bad: list[str] = []
        for preprocessing in sizes:
            splits = labelled_splits(datasets[name], sampling, preprocessing)
            num_items[name] = {split: len(items.labels) for split, items in splits.items()}
            bad += [fault for items in splits.values() for fault in items.bad]
        accounts.append(datasets[name].account(bad))
        for line in accounts[-1].lines():
            log.warning("%s", line)
    job.on_progress("data", len(names), len(names), "decoded")
    return JobData(datasets, num_items, tuple(accounts))


def put_tokenizers(job: Job) -> None:
    """Put the tokenizers of the job's bases into its store, where they are not there yet: all else needs them."""
    for base in job.plan.bases:
        put_tokenizer(job.store, job.config.base.tokenizer, base.architecture, job.plan.inputs.get(base.base_key))


def put_tokenizer(store: Store, named: str | None, architecture: str, preprocessing: AnyPreprocessing | None) -> None:
    """Put the tokenizer that `base.tokenizer` names into the store, if this preprocessing has it."""
    facts = text_facts(architecture)
    if facts is None or named is None or not isinstance(preprocessing, TextPreprocessing):
        return
    content = tokenizer_content(named, facts)
    if tokenizer_object(content)[0] == preprocessing.tokenizer:
        store.put_tokenizer(content)


def make_train_job(
    job: Job,
    datasets: Mapping[str, Dataset],
    bases: Mapping[str, str | None],
    prefix_depths: Mapping[str, int] | None = None,
) -> TrainJob:
    """Return what every trial of the job needs to know, with absolute paths."""
    config = job.config
    return TrainJob(
        store_dir=absolute(config.store),
        dataset_dirs={name: dataset.root.resolve() for name, dataset in datasets.items()},
        bases=dict(bases),
        preprocessing=job.plan.preprocessing,
        seed=config.seed,
        num_train=config.num_train,
        num_val=config.num_val,
        num_test=config.num_test,
        prefix_depths=dict(prefix_depths or {}),
        prefix_cache_bytes=config.prefix_cache_bytes,
        keeps_predictions=job.metric is not None,
        mark=job.mark,
        inputs=dict(job.plan.inputs),
    )
