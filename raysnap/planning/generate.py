"""What a job that fine-tunes will do, known before anything is written and without torch: trials, bases, datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from raysnap.config.jobs import GenerateConfig, TrialsConfig
from raysnap.datasets.dataset import find_dataset, open_dataset
from raysnap.datasets.splits import check_classes
from raysnap.errors import DataError, SnapshotNotFound, WeightsError
from raysnap.models.block_facts import block_shapes, weights_files, weights_inputs
from raysnap.planning.extras import check_trackers
from raysnap.planning.sampling import base_trials, sample_trials
from raysnap.store.preprocessing import Preprocessing
from raysnap.store.store import Store
from raysnap.training.trial import Trial

RANDOM = "random"


@dataclass(frozen=True)
class TrialsPlan:
    """What a job that fine-tunes will do.

    Attributes:
        preprocessing: of trials without an image size, where their base's weights don't say otherwise.
        bases: a trial per base; one without a dataset is stored as it is.
        weights: `base.weights` of each base, by its trial's `base_key`.
        trials: the fine-tunes; of a sweep that Optuna leads, those known so far.
        datasets: every dataset's folder, None for a built-in one that is not generated yet.
        inputs: how the weights of bases see images, by `base_key`, where that is not the usual way.
    """

    preprocessing: Preprocessing
    bases: list[Trial]
    weights: dict[str, str]
    trials: list[Trial]
    datasets: dict[str, Path | None]
    inputs: Mapping[str, Preprocessing] = field(default_factory=dict)

    def preprocessing_of(self, trial: Trial) -> Preprocessing:
        """Return how a trial sees images."""
        return trial.preprocessing(self.preprocessing, self.inputs)


def plan_generate(config: GenerateConfig) -> TrialsPlan:
    """Return the job's trials, checked against what is there; reads folders and writes nothing.

    Raises:
        RaysnapError: an architecture, a dataset, the base's weights or a tracker is not available.
    """
    bases, trials = base_trials(config), sample_trials(config)
    weights = {trial.base_key: config.base.weights for trial in bases}
    return check_plan(config, bases, weights, trials)


def check_plan(config: TrialsConfig, bases: list[Trial], weights: dict[str, str], trials: list[Trial]) -> TrialsPlan:
    """Return the plan of these trials, checked against what is there; reads folders and writes nothing.

    Raises:
        RaysnapError: an architecture, a dataset, a base's weights or a tracker is not available.
    """
    check_trackers(config.trackers)
    every = [*bases, *trials]
    for architecture, image_size in dict.fromkeys((one.architecture, one.image_size) for one in every):
        block_shapes(architecture, image_size or config.image_size)
    store = Store.open(config.store) if config.store.exists() else None
    for architecture, name in dict.fromkeys((base.architecture, weights[base.base_key]) for base in bases):
        check_weights(name, architecture, store)
    names = dict.fromkeys(trial.dataset for trial in every if trial.dataset)
    datasets = _find_datasets(list(names), config)
    for name, folder in datasets.items():
        if folder is not None:
            check_classes(open_dataset(name, config.data_dir, config.shapes), ("val", "test"))
    inputs = {}
    for base in bases:
        own = weights_preprocessing(weights[base.base_key], base.architecture, store)
        if own is not None:
            inputs[base.base_key] = own
    return TrialsPlan(Preprocessing.cropping(config.image_size), bases, weights, trials, datasets, inputs)


def _find_datasets(names: list[str], config: TrialsConfig) -> dict[str, Path | None]:
    """Return the folder of each dataset, None where it is generated first; report all missing ones at once."""
    found: dict[str, Path | None] = {}
    missing: dict[str, DataError] = {}
    for name in names:
        try:
            found[name] = find_dataset(name, config.data_dir, config.shapes)
        except DataError as error:
            missing[name] = error
    if len(missing) == 1:
        raise next(iter(missing.values()))
    if missing:
        raise DataError(
            f"data_dir {config.data_dir}: {len(missing)} of {len(names)} datasets are missing: {', '.join(missing)}; "
            "`raysnap data ls` says where to get each and `raysnap data prepare` prepares it"
        )
    return found


def check_weights(weights: str, architecture: str, store: Store | None) -> None:
    """Check that `base.weights` can give the architecture a base; a file is read, nothing is downloaded.

    Raises:
        WeightsError: it names nothing that exists, or something of another architecture.
    """
    if weights == RANDOM:
        return
    if Path(weights).is_file():
        from raysnap.models.weight_files import read_weights  # imports torch, which planning avoids

        read_weights(Path(weights), architecture)
        return
    known = weights_files(architecture)
    if weights in known:
        return
    try:
        manifest = store.manifest(weights) if store else None
    except SnapshotNotFound:
        manifest = None
    if manifest is None:
        names = ", ".join(name for name in known if "." not in name)
        raise WeightsError(
            f"base.weights {weights!r}: expected `random`, a weights name of {architecture} ({names or 'none'}), "
            "a file, or a snapshot of the store, found none of these"
        )
    if manifest.architecture != architecture:
        raise WeightsError(
            f"base.weights {weights!r}: expected a snapshot of {architecture}, found one of {manifest.architecture}"
        )


def weights_preprocessing(weights: str, architecture: str, store: Store | None) -> Preprocessing | None:
    """Return how the weights that `check_weights` accepted see images, at their own size.

    None where nothing is known of them, or where it is the usual way, with ImageNet's mean and torchvision's crops,
    which then has the size of a job.
    """
    if weights == RANDOM or Path(weights).is_file():
        return None
    fields = weights_inputs(architecture).get(weights)
    if fields is not None:
        own = Preprocessing(**fields)
    else:
        assert store is not None, "weights of another kind are a snapshot's"
        own = store.manifest(weights).preprocessing
    return None if own == Preprocessing.cropping(own.image_size) else own
