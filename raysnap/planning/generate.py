"""What a job that fine-tunes will do, known before anything is written and without torch: trials, bases, datasets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raysnap.config.jobs import GenerateConfig, TrialsConfig
from raysnap.datasets.dataset import find_dataset, kind_of_dataset, open_dataset
from raysnap.datasets.layout.suffixes import Kind
from raysnap.datasets.splits import check_classes
from raysnap.datasets.text.tokenizer_file import USUAL_LENGTH, read_tokenizer
from raysnap.datasets.text.words import TOKENIZER as WORDS
from raysnap.datasets.text.words import vocabulary_of_words, words_tokenizer
from raysnap.errors import ArchitectureError, ConfigError, DataError, SnapshotNotFound, WeightsError
from raysnap.models.architecture import shown
from raysnap.models.block_facts import TextFacts, block_shapes, text_facts, weights_files, weights_inputs
from raysnap.planning.extras import check_trackers
from raysnap.planning.sampling import base_trials, sample_trials
from raysnap.store.preprocessing import AnyPreprocessing, Preprocessing, TextPreprocessing, tokenizer_object
from raysnap.store.store import Store
from raysnap.training.trial import Trial

RANDOM = "random"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialsPlan:
    """What a job that fine-tunes will do.

    Attributes:
        preprocessing: of trials without an image size, where their base's weights don't say otherwise.
        bases: a trial per base; one without a dataset is stored as it is.
        weights: `base.weights` of each base, by its trial's `base_key`.
        trials: the fine-tunes; of a sweep that Optuna leads, those known so far.
        datasets: every dataset's folder, None for a built-in one that is not generated yet.
        inputs: how the weights of bases see their items, by `base_key`, where that is not the usual way of images.
    """

    preprocessing: Preprocessing
    bases: list[Trial]
    weights: dict[str, str]
    trials: list[Trial]
    datasets: dict[str, Path | None]
    inputs: Mapping[str, AnyPreprocessing] = field(default_factory=dict)

    def preprocessing_of(self, trial: Trial) -> AnyPreprocessing:
        """Return how a trial sees its items."""
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
        check_input_size(architecture, image_size or config.image_size)
    store = Store.find(config.store)
    for architecture, name in dict.fromkeys((base.architecture, weights[base.base_key]) for base in bases):
        check_weights(name, architecture, store)
    names = dict.fromkeys(trial.dataset for trial in every if trial.dataset)
    datasets = _find_datasets(list(names), config)
    for name, folder in datasets.items():
        if folder is not None:
            check_classes(open_dataset(name, config.data_dir, config.shapes), ("val", "test"))
    check_kinds(every, {name: kind_of_dataset(name, folder) for name, folder in datasets.items()})
    inputs: dict[str, AnyPreprocessing] = {}
    for base in bases:
        own = weights_preprocessing(weights[base.base_key], base.architecture, store, config.base.tokenizer)
        if own is not None:
            inputs[base.base_key] = own
    return TrialsPlan(Preprocessing.cropping(config.image_size), bases, weights, trials, datasets, inputs)


def check_input_size(architecture: str, image_size: int) -> None:
    """Check that an architecture takes images of so many pixels, or texts of so many tokens.

    Raises:
        ArchitectureError: it is unknown or takes none of that size.
    """
    facts = text_facts(architecture)
    if facts is not None and facts.longest is not None and image_size > facts.longest:
        raise ArchitectureError(
            f"architecture {shown(architecture)}: expected an image_size of at most the {facts.longest} tokens that it "
            f"takes, found {image_size}"
        )
    block_shapes(architecture, image_size)


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


def weights_preprocessing(
    weights: str, architecture: str, store: Store | None, tokenizer: str | None = None
) -> AnyPreprocessing | None:
    """Return how the weights that `check_weights` accepted see their items, at their own size.

    None where nothing is known of them, or where it is the usual way, with ImageNet's mean and torchvision's crops,
    which then has the size of a job.

    Args:
        tokenizer: `base.tokenizer`, for weights that see texts and come without one.

    Raises:
        ConfigError: weights that see texts have no tokenizer, or others have one.
        DataError: the tokenizer can't be read, or isn't that of the weights.
    """
    if (facts := text_facts(architecture)) is not None:
        return _text_preprocessing(weights, facts, store, tokenizer)
    if weights == RANDOM or Path(weights).is_file():
        return None
    fields = weights_inputs(architecture).get(weights)
    own: AnyPreprocessing
    if fields is not None:
        own = Preprocessing(**fields)
    else:
        assert store is not None, "weights of another kind are a snapshot's"
        own = store.manifest(weights).preprocessing
    return None if own == Preprocessing.cropping(own.image_size) else own


def check_kinds(trials: Sequence[Trial], kinds: Mapping[str, Kind]) -> None:
    """Check that architectures and datasets fit each other, and what is asked of texts can be done; log what can't.

    Args:
        kinds: of the items of each dataset that trials name.

    Raises:
        ConfigError: images would be given to a model of texts, or texts to one of images, or mixed.
    """
    for trial in trials:
        if trial.dataset is None:
            continue
        expected: Kind = "images" if text_facts(trial.architecture) is None else "texts"
        if (found := kinds[trial.dataset]) != expected:
            raise ConfigError(
                f"architecture {shown(trial.architecture)}: expected a dataset of {expected}, found {trial.dataset} of "
                f"{found}; a job has datasets and architectures of one kind"
            )
        if expected == "texts" and trial.train.is_mixing:
            raise ConfigError(
                f"dataset {trial.dataset}: expected no train.mixup_alpha or train.cutmix_alpha, as texts aren't "
                "mixed, found one above 0"
            )
    viewed = [trial.dataset for trial in trials if trial.dataset and trial.train.views != 1]
    if texts := sorted({name for name in viewed if kinds[name] == "texts"}):
        logger.warning("%s: train.views is ignored: texts are not augmented", ", ".join(texts))


def _text_preprocessing(
    weights: str, facts: TextFacts, store: Store | None, tokenizer: str | None
) -> TextPreprocessing:
    """Return how weights see texts: as their snapshot says, or with a tokenizer that is given."""
    if weights != RANDOM and not Path(weights).is_file():
        assert store is not None, "weights of another kind are a snapshot's"
        own = store.manifest(weights).preprocessing
        if isinstance(own, TextPreprocessing):
            return own
    content = tokenizer_content(tokenizer, facts)
    entry, _ = tokenizer_object(content)
    return TextPreprocessing(tokenizer=entry, max_length=facts.longest or USUAL_LENGTH, padding=facts.padding)


def tokenizer_content(tokenizer: str | None, facts: TextFacts) -> bytes:
    """Return the bytes of the tokenizer that `base.tokenizer` names, checked against the weights.

    Raises:
        ConfigError: none is named.
        DataError: it can't be read, or isn't that of the weights.
    """
    if tokenizer is None:
        raise ConfigError(
            f"`base.tokenizer`: expected a tokenizer.json, or `{WORDS}` for the built-in one, for weights that see "
            "texts and come without it; found none"
        )
    if tokenizer != WORDS:
        path = Path(tokenizer)
        return read_tokenizer(path, padding=facts.padding, vocab_size=facts.vocab_size, longest=facts.longest).content
    num_tokens = len(vocabulary_of_words())
    if facts.vocab_size < num_tokens or facts.padding != 0:
        raise ConfigError(
            f"`base.tokenizer: {WORDS}`: expected weights with a vocab_size of at least {num_tokens} and padding 0, "
            f"found {facts.vocab_size} and {facts.padding}"
        )
    return words_tokenizer()
