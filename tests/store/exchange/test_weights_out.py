"""Models of timm and transformers in their libraries' own files and folders: both ways, and nothing is changed."""

import json

import pytest
import safetensors.torch
import timm
import tokenizers
import torch
import transformers

from raysnap.errors import ArchitectureError, WeightsError
from raysnap.models.architecture import architecture
from raysnap.models.blocks import random_tensors
from raysnap.models.checkpoints import recognition
from raysnap.models.families.family import random_state_dict
from raysnap.store.exchange.weights_in import InputOptions, add_path
from raysnap.store.exchange.weights_out import export_snapshot
from raysnap.store.manifest import DatasetRecord
from raysnap.store.preprocessing import Preprocessing, of_timm
from raysnap.store.store import Store
from tests.support.hf_architectures import TEXT, VISION

TIMM_NAME = "vit_tiny_patch16_224"
TIMM_OPTIONS = {"img_size": 32, "depth": 3}
TIMM_MODEL = str(architecture("timm", TIMM_NAME, TIMM_OPTIONS))
CLASSES = ("cat", "dog", "fox")
WORDS = {"[PAD]": 0, "[UNK]": 1, "the": 2, "soup": 3, "good": 4}
TOKENIZER = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]")).to_str()


@pytest.fixture(autouse=True)
def few_architectures(monkeypatch) -> None:
    """Know none by tensors alone: measuring all takes long."""
    recognition._candidates.cache_clear()
    monkeypatch.setattr(recognition, "architecture_tensors", dict)
    yield
    recognition._candidates.cache_clear()


@pytest.fixture(autouse=True)
def quiet_transformers() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def hf_model(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[kind](**{**VISION, **TEXT}[kind], num_labels=3)
    loader = "AutoModelForSequenceClassification" if kind in TEXT else "AutoModelForImageClassification"
    return getattr(transformers, loader).from_config(config).eval()


def run_card(folder, monkeypatch) -> dict:
    """Run the lines of a card that load the model, where its export is, and return the names that they define."""
    [card] = folder.rglob("README.md")
    monkeypatch.chdir(folder)
    defined: dict = {}
    exec(card.read_text().partition("```python\n")[2].partition("```")[0], defined)
    return defined


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["vit", "swin", "resnet", "pvt", "bert"])
def test_a_folder_of_transformers_comes_in_and_goes_out(tmp_path, monkeypatch, kind):
    model = hf_model(kind)
    model.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    if kind in TEXT:
        (tmp_path / "in" / "tokenizer.json").write_text(TOKENIZER)
    else:
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "in")
    added = add_path(tmp_path / "store", tmp_path / "in", name="mine")
    assert added.written.manifest.architecture == str(architecture("hf", kind, {**VISION, **TEXT}[kind]))
    assert added.written.manifest.num_classes == 3
    files = [safetensors.torch.load_file(path) for path in (tmp_path / "in").glob("*.safetensors")]
    store = Store.open(tmp_path / "store")
    assert len(files) > 1 and equal(store.read_state_dict("mine"), {k: v for file in files for k, v in file.items()})
    assert equal(store.load_model("mine").state_dict(), model.state_dict())
    export_snapshot(store, "mine", tmp_path / "out" / "mine")
    loaded = run_card(tmp_path / "out", monkeypatch)
    assert equal(loaded["model"].state_dict(), model.state_dict())
    if kind in TEXT:
        text = "soup"
        tokens = tokenizers.Tokenizer.from_str(TOKENIZER).encode(text).ids
        assert loaded["tokenizer"](text)["input_ids"] == tokens
    again = add_path(tmp_path / "store", tmp_path / "out" / "mine").written
    assert (again.is_new, again.new_blocks, again.manifest) == (False, 0, store.manifest("mine"))


def test_transformers_finds_all_names_of_an_export(tmp_path):
    hf_model("vit").save_pretrained(tmp_path / "in")
    add_path(tmp_path / "store", tmp_path / "in", name="mine", dataset=DatasetRecord(name="pets", classes=CLASSES))
    export_snapshot(Store.open(tmp_path / "store"), "mine", tmp_path / "out")
    model, report = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values())
    assert list(model.config.id2label.values()) == list(CLASSES)
    added = add_path(tmp_path / "other", tmp_path / "out")
    assert "names its 3 classes; --dataset NAME keeps them" in added.remarks[-1]
    add_path(tmp_path / "third", tmp_path / "out", dataset=DatasetRecord(name="pets"), name="mine")
    assert Store.open(tmp_path / "third").manifest("mine").dataset.classes == CLASSES


def test_a_file_of_transformers_names_is_loaded_as_its_card_says(tmp_path, monkeypatch):
    model = hf_model("vit")
    model.save_pretrained(tmp_path / "in")
    add_path(tmp_path / "store", tmp_path / "in", name="mine")
    export_snapshot(Store.open(tmp_path / "store"), "mine", tmp_path / "out" / "mine.safetensors")
    loaded = run_card(tmp_path / "out", monkeypatch)
    assert equal(loaded["model"].state_dict(), model.state_dict())


@pytest.mark.parametrize("to", ["mine.safetensors", "mine.pth", "mine"])
def test_timm_loads_an_export_as_its_card_says(tmp_path, monkeypatch, to):
    store = Store.open(tmp_path / "store", create=True)
    blocks = random_tensors(TIMM_MODEL, 3, 0)
    preprocessing = Preprocessing(resize_size=36, image_size=32, interpolation="bicubic", mean=(0.5, 0.4, 0.3))
    store.set_ref(
        "mine",
        store.put_snapshot(
            architecture=TIMM_MODEL, blocks=blocks, num_classes=3, preprocessing=preprocessing
        ).manifest.id,
    )
    export_snapshot(store, "mine", tmp_path / "out" / to)
    loaded = run_card(tmp_path / "out", monkeypatch)
    assert equal(loaded["model"].state_dict(), {name: value for _, block in blocks for name, value in block.items()})
    if to != "mine.pth":  # the only form without a word on the architecture
        again = add_path(tmp_path / "store", tmp_path / "out" / to).written
        assert (again.is_new, again.new_blocks) == (False, 0)
    if to == "mine":
        added = add_path(tmp_path / "other", tmp_path / "out" / to).written.manifest
        assert added.preprocessing == preprocessing
        assert loaded["transform"].transforms[0].size == 36


@pytest.mark.parametrize("seen", [160, 96])
def test_timm_builds_nets_of_one_size_as_they_were(tmp_path, monkeypatch, seen):
    model = timm.create_model("test_vit", num_classes=3)  # of 160 px, where the class that it is of has 224
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    size = None if seen == 160 else seen
    options = InputOptions(image_size=size)
    added = add_path(
        tmp_path / "store", tmp_path / "mine.pth", architecture="timm/test_vit", name="mine", options=options
    )
    assert added.written.manifest.preprocessing.image_size == seen
    export_snapshot(Store.open(tmp_path / "store"), "mine", tmp_path / "out" / "mine")
    loaded = run_card(tmp_path / "out", monkeypatch)
    assert equal(loaded["model"].state_dict(), model.state_dict())
    again = add_path(tmp_path / "store", tmp_path / "out" / "mine").written
    assert (again.is_new, again.manifest) == (False, added.written.manifest)


def test_a_folder_that_timm_saved_comes_in(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(TIMM_NAME, num_classes=3, **TIMM_OPTIONS)
    timm.models.save_for_hf(model, tmp_path / "in", model_args=TIMM_OPTIONS, model_config={"num_classes": 3})
    added = add_path(tmp_path / "store", tmp_path / "in", name="mine").written.manifest
    assert added.architecture == TIMM_MODEL
    assert equal(Store.open(tmp_path / "store").read_state_dict("mine"), model.state_dict())
    assert added.preprocessing.interpolation == "bicubic"


def test_a_spelled_out_default_keeps_its_snapshot(tmp_path):
    spelled = str(architecture("hf", "vit", VISION["vit"] | {"hidden_act": "gelu"}))
    store = Store.open(tmp_path / "store", create=True)
    blocks = random_tensors(spelled, 3, 0)
    id_ = store.put_snapshot(architecture=spelled, blocks=blocks, num_classes=3).manifest.id
    export_snapshot(store, id_, tmp_path / "out")
    assert add_path(tmp_path / "store", tmp_path / "out").written.manifest.id == id_
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert '"hidden_act":"relu"' in add_path(tmp_path / "store", tmp_path / "out").written.manifest.architecture


def test_crops_that_a_library_places_elsewhere_are_remarked(tmp_path):
    hf_model("resnet").save_pretrained(tmp_path / "in")
    add_path(tmp_path / "store", tmp_path / "in", name="mine", options=InputOptions(image_size=64))
    [remark] = export_snapshot(Store.open(tmp_path / "store"), "mine", tmp_path / "out").remarks
    assert remark.startswith("transformers crops")


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"model_type": "detr"}, WeightsError, "name theirs with --arch"),
        ({"hidden_size": "wide"}, ArchitectureError, "rejects this configuration"),
        ({"num_hidden_layers": 4}, WeightsError, "4 missing|16 missing"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(tmp_path, change, error, reason):
    hf_model("vit").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(error, match=reason) as caught:
        add_path(tmp_path / "store", tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_timm_nets_are_assumed_to_see_as_timms_own_weights(tmp_path):
    architecture_text = "timm/vit_tiny_patch16_384"
    torch.save(dict(random_state_dict(architecture_text, 2, 0)), tmp_path / "vit.pth")
    added = add_path(tmp_path / "store", tmp_path / "vit.pth", architecture=architecture_text)
    own = added.written.manifest.preprocessing
    assert own == of_timm(timm.get_pretrained_cfg("vit_tiny_patch16_384").to_dict())
    assert (own.image_size, own.mean, own.interpolation) == (384, (0.5, 0.5, 0.5), "bicubic")
    assert added.remarks == (f"assumed to take images so, as --image-size was not given: {own.text}",)
