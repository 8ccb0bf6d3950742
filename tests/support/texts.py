"""A tiny BERT on the built-in texts: stores of it, made without Ray."""

from pathlib import Path

import torch

from raysnap.config.choices import Role, Status
from raysnap.config.jobs import SynthesizeConfig
from raysnap.config.parts import ShapesConfig
from raysnap.config.train import TrainConfig
from raysnap.datasets.dataset import open_dataset
from raysnap.datasets.text.words import vocabulary_of_words, words_tokenizer
from raysnap.jobs.collect import collect
from raysnap.jobs.synthesize import synthesize
from raysnap.models.architecture import architecture
from raysnap.store.preprocessing import TextPreprocessing
from raysnap.store.store import Store
from raysnap.training.savepoints import read_savepoint
from raysnap.training.trial import Trial
from raysnap.training.trial_loop import TrainJob, run_trial
from raysnap.tune.options import TrialOutcome

TOKENS = 24
SIZES = ShapesConfig(num_train=320, num_val=100, num_test=40)
OPTIONS = {
    "vocab_size": len(vocabulary_of_words()),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
BERT = str(architecture("hf", "bert", OPTIONS))
FAST = TrainConfig(epochs=8, lr=1.5e-3, batch_size=32)


def text_preprocessing(store: Store, num_tokens: int = TOKENS) -> TextPreprocessing:
    """Return how the tiny BERT sees texts; its tokenizer is in the store afterwards."""
    return TextPreprocessing(tokenizer=store.put_tokenizer(words_tokenizer()), max_length=num_tokens)


def synthetic_store(directory: Path, num_snapshots: int = 6) -> Store:
    """Return a new store of tiny BERTs that share blocks, untrained."""
    synthesize(
        SynthesizeConfig(
            architectures=(BERT,),
            num_snapshots=num_snapshots,
            num_classes=4,
            image_size=TOKENS,
            base={"tokenizer": "words"},
            store=directory / "store",
            run_dir=directory / "run",
        )
    )
    return Store.open(directory / "store")


def train_bert(
    store: Store, directory: Path, dataset: str, *, base: str | None = None, retrain: int | None = None
) -> str:
    """Fine-tune a tiny BERT in this process, from random weights or a snapshot; return the id of its snapshot."""
    how = text_preprocessing(store)
    trial = Trial(
        id=dataset, role=Role.FINETUNE, architecture=BERT, dataset=dataset, retrain_index=retrain, seed=0, train=FAST
    )
    job = TrainJob(
        store_dir=store.path,
        dataset_dirs={dataset: open_dataset(dataset, directory / "data", SIZES).root},
        bases={BERT: base},
        preprocessing=how,
        seed=0,
        num_train=None,
        num_val=None,
        num_test=None,
        inputs={BERT: how},
        prefix_depths={dataset: trial.num_frozen},
        prefix_cache_bytes=10**9,
    )
    rows = []

    def report(metrics, checkpoint) -> None:
        if metrics.get("status") == Status.DONE.value:
            outcome = TrialOutcome(trial, read_savepoint(checkpoint), Status.DONE, None)
            rows.append(collect(store, outcome, how))

    sized = trial.model_copy(update={"image_size": TOKENS})
    run_trial(sized, job, torch.device("cpu"), report)
    return rows[0].snapshot
