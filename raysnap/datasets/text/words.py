"""The built-in `words` datasets: short reports written from a seed, offline, some tasks related and some not.

Every text reports what one person told another of some thing, and varies in all factors (who tells whom, the thing's
topic, what is said of it, whether that is denied); a task's name says which factor decides the class. Tasks `-a` and
`-b` of one factor ask different questions of the same words, so features transfer between them while their heads have
nothing in common. `words-mixed` asks for two factors at once, which makes it one to pretrain on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from blake3 import blake3

from raysnap.config.parts import ShapesConfig
from raysnap.datasets.image_folder import new_folder
from raysnap.errors import DataError

WRITING_VERSION = 1
LICENCE = "Written by raysnap; Apache-2.0 like raysnap itself."
TOKENIZER = "words"
"""What `base.tokenizer` calls the tokenizer of these texts."""

_THINGS = {
    "food": ("soup", "bread", "cheese", "salad", "stew", "apple", "curry", "cake", "rice", "pie"),
    "music": ("song", "choir", "violin", "drum", "opera", "piano", "tune", "concert", "band", "flute"),
    "sport": ("match", "race", "goal", "tennis", "referee", "sprint", "league", "coach", "football", "regatta"),
    "weather": ("storm", "rain", "snow", "breeze", "fog", "frost", "sunshine", "thunder", "drizzle", "heat"),
}
_JUDGEMENTS = {
    "positive": ("great", "lovely", "splendid", "perfect", "charming", "superb", "pleasant", "brilliant"),
    "negative": ("awful", "dreadful", "boring", "terrible", "nasty", "poor", "horrid", "dull"),
    "neutral": ("early", "usual", "local", "recent", "foreign", "brief", "modern", "ordinary"),
}
_NAMES = ("ann", "bob", "carla", "dan")
_DENIALS = ("not", "never", "hardly")
_STRESSES = ("", "really", "very", "quite")
_OPENINGS = ("yesterday", "this morning", "last week", "on monday", "once more", "as always", "in the end", "at noon")
_TELLING = ("told", "wrote to", "assured", "reminded", "informed")
_CLOSINGS = ("and left", "and smiled", "over the phone", "in a letter", "at the station", "without delay", "again")

Choice = Mapping[str, tuple[str, ...]]
_ALL: Choice = {
    "topic": tuple(_THINGS),
    "judgement": tuple(_JUDGEMENTS),
    "teller": _NAMES,
    "listener": _NAMES,
    "denial": (*_STRESSES[: len(_DENIALS)], *_DENIALS),  # as often as not
}

TASKS: dict[str, dict[str, tuple[Choice, ...]]] = {
    "words-mixed": {
        f"{topic}-{tone}": ({"topic": (topic,), "judgement": (tone,)},)
        for topic in _THINGS
        for tone in ("positive", "negative")
    },
    "words-topic-a": {topic: ({"topic": (topic,)},) for topic in _THINGS},
    "words-topic-b": {"indoors": ({"topic": ("food", "music")},), "outdoors": ({"topic": ("sport", "weather")},)},
    "words-sentiment-a": {tone: ({"judgement": (tone,), "denial": _STRESSES},) for tone in ("positive", "negative")},
    "words-sentiment-b": {
        "content": ({"judgement": ("positive", "neutral"), "denial": _STRESSES},),
        "unhappy": ({"judgement": ("negative",), "denial": _STRESSES},),
    },
    "words-order-a": {name: ({"teller": (name,)},) for name in _NAMES},
    "words-order-b": {name: ({"listener": (name,)},) for name in _NAMES},
    "words-negation-a": {"affirmed": ({"denial": _STRESSES},), "denied": ({"denial": _DENIALS},)},
    "words-negation-b": {
        "praise": (
            {"judgement": ("positive",), "denial": _STRESSES},
            {"judgement": ("negative",), "denial": _DENIALS},
        ),
        "blame": (
            {"judgement": ("negative",), "denial": _STRESSES},
            {"judgement": ("positive",), "denial": _DENIALS},
        ),
    },
}
"""The classes of each task; a class is one or more choices of what its texts say, and leaves the rest open."""


def write_task(name: str, directory: Path, config: ShapesConfig) -> None:
    """Write the dataset `name` as the folder `directory`, which appears whole or not at all.

    Raises:
        DataError: the folder can't be written, or there would be fewer than two training texts of a class.
    """
    num_needed = 2 * len(TASKS[name])
    if config.num_train < num_needed:
        raise DataError(
            f"shapes.num_train: expected at least {num_needed}, two per class of {name}, found {config.num_train}"
        )
    with new_folder(directory, writing_record(name, config)) as folder:
        for split, num_texts in (("train", config.num_train), ("val", config.num_val), ("test", config.num_test)):
            for index in range(num_texts):
                class_name, text = write_text(name, split, index, config.seed)
                folder.add_image(split, class_name, f"{index:06d}.txt", f"{text}\n".encode())


def writing_record(name: str, config: ShapesConfig) -> dict[str, Any]:
    """Return what `dataset.json` says about a task, without counts and digest: enough to write it again."""
    return {
        "name": name,
        "source": "written by raysnap",
        "licence": LICENCE,
        "drawing_version": WRITING_VERSION,
        "drawing": config.model_dump(mode="json", exclude={"image_size"}),
    }


def write_text(name: str, split: str, index: int, seed: int) -> tuple[str, str]:
    """Write one text; return its class and the text. Classes take turns, so that every split is balanced."""
    classes = list(TASKS[name])
    class_name = classes[index % len(classes)]
    key = f"{seed}/{name}/{split}/{index}".encode()
    rng = random.Random(int.from_bytes(blake3(key).digest(16), "big"))

    def pick(words: tuple[str, ...]) -> str:
        return words[int(rng.random() * len(words))]

    choices = TASKS[name][class_name]
    choice = {**_ALL, **choices[int(rng.random() * len(choices))]}
    thing = pick(_THINGS[pick(choice["topic"])])
    judgement = pick(_JUDGEMENTS[pick(choice["judgement"])])
    teller, listener = pick(choice["teller"]), pick(choice["listener"])
    parts = (
        f"{pick(_OPENINGS)} {teller} {pick(_TELLING)} {listener} {pick(_CLOSINGS)} :",
        f"the {thing} was {pick(choice['denial'])} {judgement} .",
    )
    return class_name, " ".join(" ".join(parts).split())


@lru_cache(maxsize=1)
def words_tokenizer() -> bytes:
    """Return the `tokenizer.json` of these texts: their words, and letters for all others.

    Raises:
        DataError: the package tokenizers is missing.
    """
    from raysnap.datasets.text.tokenizer import tokenizers_package

    library = tokenizers_package("the tokenizer of the words datasets")
    vocabulary = {token: number for number, token in enumerate(vocabulary_of_words())}
    made = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    special = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    made.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=special
    )
    return json.dumps(json.loads(made.to_str()), ensure_ascii=False, sort_keys=True).encode()


def vocabulary_of_words() -> list[str]:
    """Return the tokens of the words tokenizer in order; the first is the padding."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789")
    phrases = [
        *(word for words in (*_THINGS.values(), *_JUDGEMENTS.values()) for word in words),
        *_NAMES, *_DENIALS, *_STRESSES, *_OPENINGS, *_TELLING, *_CLOSINGS, "the was",
    ]  # fmt: skip
    words = sorted({word for phrase in phrases for word in phrase.split()} - set(letters))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*special, *".,:;!?'\"-()", *letters, *(f"##{letter}" for letter in letters), *words]
