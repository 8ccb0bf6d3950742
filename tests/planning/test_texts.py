"""Jobs on texts: what fits together is planned with a tokenizer, what doesn't is refused before anything is written."""

import pytest

from raysnap.config.jobs import GenerateConfig, SynthesizeConfig
from raysnap.datasets.text.words import words_tokenizer
from raysnap.errors import ArchitectureError, ConfigError, DataError
from raysnap.planning.generate import plan_generate
from raysnap.planning.synthetic import plan_synthesize
from raysnap.store.preprocessing import TextPreprocessing, tokenizer_object
from raysnap.store.store import Store
from raysnap.training.prefix_plan import plan_trials
from tests.support.texts import BERT, TOKENS, synthetic_store

WORDS = {"tokenizer": "words"}


def job(tmp_path, **changes) -> GenerateConfig:
    settings = {
        "architectures": [BERT],
        "datasets": ["words-topic-a"],
        "num_snapshots": 2,
        "image_size": TOKENS,
        "base": WORDS,
        "data_dir": tmp_path / "data",
        "store": tmp_path / "store",
        "run_dir": tmp_path / "run",
    }
    return GenerateConfig.model_validate(settings | changes)


@pytest.mark.parametrize("is_file", [True, False])
def test_a_random_base_gets_the_tokenizer_that_is_named(tmp_path, is_file):
    (tmp_path / "mine.json").write_bytes(words_tokenizer())
    config = job(tmp_path, base={"tokenizer": str(tmp_path / "mine.json")} if is_file else WORDS)
    plan = plan_generate(config)
    (how,) = {plan.preprocessing_of(trial) for trial in plan.trials}
    assert how == TextPreprocessing(tokenizer=tokenizer_object(words_tokenizer())[0], max_length=TOKENS)
    assert not config.store.exists()


def test_a_base_of_the_store_brings_its_tokenizer(tmp_path):
    store = synthetic_store(tmp_path, num_snapshots=1)
    (manifest,) = store.manifests()
    plan = plan_generate(job(tmp_path, base={"weights": manifest.id}, image_size=16))
    assert plan.preprocessing_of(plan.trials[0]) == manifest.preprocessing.sized(16)
    assert Store.open(tmp_path / "store").stats()["num_snapshots"] == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"base": {}}, ConfigError, "`base.tokenizer`: expected a tokenizer.json, or `words`"),
        ({"base": {"tokenizer": "no.json"}}, DataError, "no.json: can't be read"),
        ({"architectures": ["hf/bert"], "image_size": 513}, ArchitectureError, "at most the 512 tokens that it takes"),
        ({"architectures": ["resnet18"], "base": {}}, ConfigError, "expected a dataset of images, found"),
        ({"datasets": ["shapes-shape-a"]}, ConfigError, "expected a dataset of texts, found shapes-shape-a"),
        ({"train": {"mixup_alpha": 0.2}}, ConfigError, "expected no train.mixup_alpha .* texts aren't mixed"),
        (
            {"architectures": [BERT.replace('"vocab_size":195', '"vocab_size":100')]},
            ConfigError,
            "`base.tokenizer: words`: expected weights with a vocab_size of at least 195 and padding 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        plan_generate(job(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_views_of_texts_are_ignored_with_a_line(tmp_path, caplog):
    viewed = plan_generate(job(tmp_path, train={"views": 8, "epochs": 8}))
    assert "words-topic-a: train.views is ignored: texts are not augmented" in caplog.text
    num_items = {"words-topic-a": {"train": 64, "val": 8, "test": 8}}
    plain = plan_generate(job(tmp_path, train={"epochs": 8}))
    depths = [plan_trials(plan.trials, TOKENS, num_items, 10**6) for plan in (viewed, plain)]
    assert depths[0] == depths[1] != dict.fromkeys(depths[0], 0)


def test_synthetic_texts_need_a_tokenizer_too(tmp_path):
    places = {"store": tmp_path / "store", "run_dir": tmp_path / "run"}
    config = SynthesizeConfig(architectures=(BERT,), image_size=TOKENS, **places)
    with pytest.raises(ConfigError, match=r"`base\.tokenizer`"):
        plan_synthesize(config)
