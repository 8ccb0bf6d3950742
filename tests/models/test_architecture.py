"""The one string that names an architecture: read, written in one way, shown in short."""

import pickle

import pytest

from raysnap.errors import ArchitectureError
from raysnap.models.architecture import Architecture, architecture, package_of, parse, shown


@pytest.mark.parametrize(
    ("text", "family", "name", "options"),
    [
        ("resnet18", "torchvision", "resnet18", {}),
        ("timm/vit_tiny_patch16_224", "timm", "vit_tiny_patch16_224", {}),
        ('timm/vit_tiny_patch16_224{"img_size":64}', "timm", "vit_tiny_patch16_224", {"img_size": 64}),
        ('hf/xlm-roberta{"a":[1,2.5],"b":{"c":null}}', "hf", "xlm-roberta", {"a": [1, 2.5], "b": {"c": None}}),
    ],
)
def test_a_string_reads_and_writes_back(text, family, name, options):
    found = parse(text)
    assert (found.family, found.name, found.options) == (family, name, options)
    assert str(found) == text
    assert found == architecture(family, name, options) == pickle.loads(pickle.dumps(found))
    assert hash(found) == hash(Architecture(family, name, found.configuration))


def test_json_of_any_spelling_becomes_canonical():
    assert str(parse('hf/vit { "b": 1, "a" : "\\u00fc" }')) == 'hf/vit{"a":"ü","b":1}'
    assert str(parse("hf/vit{}")) == "hf/vit"
    with pytest.raises(ArchitectureError, match="canonical JSON"):
        Architecture("hf", "vit", '{"b": 1}')


def test_options_are_the_callers_own():
    found = parse('hf/vit{"sizes":[1,2]}')
    found.options["sizes"].append(3)
    assert found.options == {"sizes": [1, 2]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "res net",
        "../resnet18",
        "mxnet/resnet18",
        "timm/",
        "timm/a/b",
        "resnet18{}x",
        'resnet18{"a":1}',
        'hf/vit{"a":1,"a":2}',
        'hf/vit{"a":NaN}',
        "hf/vit{",
        'hf/vit{"a":' + "[" * 60_000,
        "hf/" + "v" * 201,
        'hf/vit{"a":"' + "x" * 70_000,
    ],
)
def test_what_is_no_name_is_refused_in_one_line(text):
    with pytest.raises(ArchitectureError, match=r"^architecture .*: expected .*, found ") as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("options", [{"a": object()}, {"a": float("nan")}])
def test_a_configuration_must_be_json(options):
    with pytest.raises(ArchitectureError, match="plain JSON"):
        architecture("hf", "vit", options)


def test_the_short_form_stands_for_the_configuration():
    assert shown("resnet18") == "resnet18"
    assert shown("timm/resnet18") == "timm/resnet18"
    short = shown('hf/vit{"hidden_size":32}')
    assert short.startswith("hf/vit-")
    assert len(short) == len("hf/vit-1a2b3c")
    assert short == shown('hf/vit{ "hidden_size" : 32 }') != shown('hf/vit{"hidden_size":33}')
    assert shown("no such thing") == "no such thing"


def test_a_family_says_its_package():
    assert [package_of(family) for family in ("torchvision", "timm", "hf")] == ["torchvision", "timm", "transformers"]
