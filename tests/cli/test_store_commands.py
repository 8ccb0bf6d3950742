"""`raysnap store`: what each command prints, and its exit code."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torchvision.models import get_model

from raysnap.cli.app import main
from raysnap.models.blocks import random_head
from raysnap.store.store import Store
from tests.support.cli_commands import run_json, run_text


def test_listing_a_store_does_without_torch_and_ray(here):
    code = (
        "import sys; from raysnap.cli.app import main; main(['store', 'ls']); main(['store', 'stats']); "
        "sys.exit(str({'torch', 'ray'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


def test_ls_lists_names_and_figures(here, capsys):
    snapshots = run_json(capsys, "store", "ls")["snapshots"]
    assert {name for one in snapshots for name in one["names"]} == {"base", "tuned"}
    out = run_text(capsys, "store", "ls", "--where", "retrain_index == 0")
    assert "tuned" in out and "0.750" in out and "44.8" in out
    assert "base" not in out


def test_show_prints_the_manifest_and_shared_blocks(here, capsys):
    document = run_json(capsys, "store", "show", "tuned")
    assert (document["names"], document["retrain_index"], len(document["blocks"])) == (["tuned"], 0, 10)
    out = run_text(capsys, "store", "show", document["id"][:8])
    assert "resnet18, 3\u00a0classes" in out and "val_accuracy 0.75" in out
    assert document["shared_with"]["stem"] == document["lineage"]
    blocks = {line.split()[0]: line.split()[-2:] for line in out.splitlines()[-10:]}
    assert (blocks["stem"], blocks["layer4.1"]) == (["1", "base"], ["1", "base"])
    assert blocks["head"][-1] == "0"


def test_show_draws_bases_and_derived_snapshots(here, capsys):
    assert "└── tuned" in run_text(capsys, "store", "show", "tuned")
    drawn = run_text(capsys, "store", "show", "base")
    assert any(line.startswith("base ") and "← this one" in line for line in drawn.splitlines())
    assert "└── tuned" in drawn


def test_diff_says_which_blocks_differ(here, capsys):
    blocks = run_json(capsys, "store", "diff", "base", "tuned")["blocks"]
    assert [block["name"] for block in blocks if not block["equal"]] == ["head"]
    lines = run_text(capsys, "store", "diff", "base", "tuned").splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["same"] * 9 + ["differs"]


def test_stats_counts_snapshots_blocks_and_bytes(here, capsys):
    stats = run_json(capsys, "store", "stats")
    assert (stats["num_snapshots"], stats["num_blocks"]) == (2, 11)
    assert stats["bytes_on_disk"] < 0.51 * stats["bytes_if_copied"]
    assert "2\u00a0snapshots in 11\u00a0blocks" in run_text(capsys, "store", "stats")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_export_then_add_gives_the_same_snapshot(here, capsys, name):
    exported = run_json(capsys, "store", "export", "tuned", "--to", name)
    assert exported["weights_path"] == name
    added = run_json(capsys, "store", "add", name, "--arch", "resnet18", "--store", "new", "--name", "back")
    assert set(added) == {
        *("path", "name", "snapshot", "architecture", "new_blocks", "new_bytes", "entry", "other_entries"),
        *("image_size", "preprocessing"),
    }
    assert (added["entry"], added["other_entries"]) == ("", [])
    assert added["snapshot"] == Store.open("store").resolve("tuned")


def test_adding_a_file_again_writes_nothing(here, capsys):
    add = ("add", "w.pth", "--arch", "resnet18", "--store", "new", "--image-size", "224")
    for arguments in (("export", "tuned", "--to", "w.pth"), add):
        run_text(capsys, "store", *arguments)
    again = run_json(capsys, "store", "add", "w.pth", "--arch", "resnet18", "--store", "new", "--name", "back")
    assert (again["new_blocks"], again["new_bytes"]) == (0, 0)
    assert "0\u00a0new blocks" in run_text(capsys, "store", *add)


def test_an_assumed_image_size_is_said(here, capsys):
    run_text(capsys, "store", "export", "tuned", "--to", "w.pth")
    add = ["store", "add", "w.pth", "--arch", "resnet18"]
    assert main([*add, "--store", "new"]) == 0
    assert capsys.readouterr().err == (
        "raysnap: w.pth: assumed to take images so, as --image-size was not given: shorter side 256\u00a0px "
        "(bilinear), crop 224\u00a0px, mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225]\n"
    )
    assert main([*add, "--image-size", "32", "--store", "new"]) == 0
    assert "already stored, for images of 224 px" in capsys.readouterr().err


def test_weights_bring_their_preprocessing(here, capsys):
    run_text(capsys, "store", "export", "tuned", "--to", "w.pth")
    add = ("store", "add", "w.pth", "--arch", "resnet18", "--store")
    like = run_json(capsys, *add, "new", "--weights", "ResNet18_Weights.IMAGENET1K_V1", "--image-size", "112")
    assert (like["preprocessing"]["resize_size"], like["image_size"]) == (128, 112)
    assert main([*add, "other", "--weights", "IMAGENET1K_V9"]) == 2
    assert "expected weights of resnet18 (IMAGENET1K_V1, DEFAULT)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--resize", "40x40"], {"resize_mode": "squash", "resize_size": 40, "image_size": 40}),
        (["--resize", "40", "--image-size", "32"], {"resize_size": 40, "image_size": 32}),
        (["--interpolation", "lanczos"], {"interpolation": "lanczos", "resize_size": 256}),
        (["--mean", "0.5", "--std", "0.1,0.2,0.3"], {"mean": [0.5] * 3, "std": [0.1, 0.2, 0.3]}),
    ],
)
def test_preprocessing_can_be_told(here, capsys, options, expected):
    run_text(capsys, "store", "export", "tuned", "--to", "w.pth")
    added = run_json(capsys, "store", "add", "w.pth", "--arch", "resnet18", "--store", "new", *options)
    assert expected.items() <= added["preprocessing"].items()
    out = run_text(capsys, "store", "show", added["snapshot"], "--store", "new")
    assert str(expected.get("resize_size", 256)) in out


@pytest.mark.parametrize(
    "options",
    [
        ["--resize", "4x5"],
        ["--resize", "x"],
        ["--resize", "0"],
        ["--image-size", "1"],
        ["--mean", "1,2"],
        ["--std", "0"],
        ["--mean", "nan"],
    ],
)
def test_preprocessing_of_another_form_is_refused(here, capsys, options):
    run_text(capsys, "store", "export", "tuned", "--to", "w.pth")
    assert main(["store", "add", "w.pth", "--arch", "resnet18", "--store", "new", *options]) == 2
    assert options[0] in capsys.readouterr().err
    assert not (here / "new").exists()


def test_a_folder_says_how_its_weights_see(here, capsys):
    run_text(capsys, "store", "export", "tuned", "--to", "folder/model.safetensors")
    facts = {
        "architecture": "resnet18",
        "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 0.5, "mean": [0.5] * 3},
    }
    (here / "folder" / "config.json").write_text(json.dumps(facts))
    added = run_json(capsys, "store", "add", "folder", "--arch", "resnet18", "--store", "new")
    how = {"resize_size": 128, "image_size": 64, "mean": [0.5] * 3, "interpolation": "bicubic"}
    assert how.items() <= added["preprocessing"].items()
    (here / "folder" / "preprocessor_config.json").write_text('{"image_processor_type": "DonutImageProcessor"}')
    assert main(["store", "add", "folder", "--arch", "resnet18", "--store", "other"]) == 2
    assert "preprocessor_config.json: image_processor_type: expected one of Beit" in capsys.readouterr().err


def test_many_paths_are_added_and_the_rest_named(here, capsys):
    for name in ("a.pth", "b.safetensors"):
        run_text(capsys, "store", "export", "tuned", "--to", f"many/{name}")
    (here / "many" / "c.pth").write_bytes(b"x")
    paths = [f"many/{name}" for name in ("a.pth", "b.safetensors", "c.pth", "d.pth")]
    assert main(["store", "add", *paths, "--arch", "resnet18", "--store", "new", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in document["added"]] == ["a", "b"]
    assert [one["path"] for one in document["failed"]] == paths[2:]
    assert main(["store", "add", *paths, "--name", "x"]) == 2


def test_a_base_says_the_image_size(here, capsys):
    run_text(capsys, "store", "export", "tuned", "--to", "w.pth")
    run_text(capsys, "store", "export", "base", "--to", "base.pth")
    add = ["store", "add", "--arch", "resnet18", "--store", "new"]
    assert run_json(capsys, *add, "base.pth", "--image-size", "32", "--name", "small")["image_size"] == 32
    assert run_json(capsys, *add, "w.pth", "--base", "small")["image_size"] == 32


def test_an_export_is_a_state_dict_of_torchvision(here, capsys):
    assert "w.pth and README.md" in run_text(capsys, "store", "export", "tuned", "--to", "w.pth")
    model = get_model("resnet18", weights=None, num_classes=3)
    model.load_state_dict(torch.load("w.pth", weights_only=True), strict=True)


def test_add_records_given_facts_and_the_retrain_index(here, capsys):
    store = Store.open("store")
    blocks = [(block.name, store.read_block(block.digest)) for block in store.manifest("base").blocks]
    tensors = {name: tensor for _, block in blocks for name, tensor in block.items()}
    torch.save(tensors | {name: tensor + 1 for name, tensor in blocks[-3][1].items()}, "tuned.pth")
    shutil.copytree("store", "other")
    facts = ("--base", "base", "--dataset", "birds", "--metric", "val_accuracy=0.5", "--metric", "f1=1e-1")
    arguments = ("tuned.pth", "--arch", "resnet18", "--image-size", "112", *facts, "--store", "other")
    added = run_json(capsys, "store", "add", *arguments)
    assert added["new_blocks"] == 1
    manifest = Store.open("other").manifest(added["snapshot"])
    assert (manifest.base, manifest.retrain_index) == (store.resolve("base"), 2)
    assert (manifest.dataset.name, manifest.metrics) == ("birds", {"val_accuracy": 0.5, "f1": 0.1})
    assert (manifest.preprocessing.resize_size, manifest.preprocessing.image_size) == (128, 112)


def test_gc_deletes_what_no_snapshot_needs(here, capsys):
    store = Store.open("own", create=True)
    store.put_block(random_head("resnet18", 3, 0))
    assert "0\u00a0blocks deleted (0\u00a0B), 1 kept" in run_text(capsys, "store", "gc", "--store", "own")
    assert run_json(capsys, "store", "gc", "--store", "own", "--grace", "0")["num_blocks_deleted"] == 1


@pytest.fixture
def damaged_head(here, shared) -> str:
    """Damage the head of `tuned` in the store `bad`, which gets a file that is no name, too; return its digest."""
    shutil.copytree(shared / "store", here / "bad")
    head = Store.open(here / "bad").manifest("tuned").blocks[-1].digest
    path = here / "bad" / "objects" / head[:2] / head
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    (here / "bad" / "refs" / "not a name").touch()
    return head


def test_verify_of_a_sound_store_says_ok(here, capsys):
    assert run_json(capsys, "store", "verify")["damaged"] == []
    assert run_text(capsys, "store", "verify").startswith("ok; read 2\u00a0snapshots, 11\u00a0blocks")


def test_verify_lists_damage_with_its_snapshots_as_json(here, capsys, damaged_head):
    damaged = run_json(capsys, "store", "verify", "--store", "bad", exit_code=3)["damaged"]
    tuned = Store.open(here / "bad").resolve("tuned")
    assert [(block["block"], block["snapshots"]) for block in damaged] == [(damaged_head, [tuned])]


def test_verify_names_each_damage_and_exits_3(here, capsys, damaged_head):
    assert main(["store", "verify", "--store", "bad"]) == 3
    out, err = capsys.readouterr()
    assert out.startswith("damaged: 1\u00a0block and 1\u00a0other file")
    assert f"raysnap: block {damaged_head}: its " in err and "refs/not a name: does not belong here" in err


def test_a_damaged_snapshot_is_not_exported(here, capsys, damaged_head):
    assert main(["store", "export", "tuned", "--store", "bad", "--to", "x.pth"]) == 3
    assert damaged_head in capsys.readouterr().err
    assert not (here / "x.pth").exists()


def test_an_unreadable_folder_is_reported_in_one_line(here, capsys):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (here / "closed").mkdir(mode=0)
    assert main(["store", "ls", "--store", "closed"]) == 2
    assert capsys.readouterr().err.startswith("raysnap: closed: can't be read as a store")


def copied_store(here):
    """Replace the link to the shared store by a copy that may be changed."""
    shared = (here / "store").resolve()
    (here / "store").unlink()
    shutil.copytree(shared, here / "store")
    return Store.open("store")


def test_rm_shows_what_it_would_free_before_it_removes(here, capsys):
    store = copied_store(here)
    tuned = store.resolve("tuned")
    planned = run_json(capsys, "store", "rm", "tuned", "--dry-run")
    assert (planned["removed"], planned["dry_run"], planned["orphaned"]) == ([tuned], True, [])
    assert planned["num_blocks_freed"] == 1 and "tuned" in store.refs()
    out = run_text(capsys, "store", "rm", "tuned")
    assert "1\u00a0snapshot removed; `store gc` will free" in out
    assert list(store.refs()) == ["base"]
    assert store.gc(grace_s=0)["deleted_bytes"] == planned["freed_bytes"]


def test_rm_by_filter_removes_only_when_told_to(here, capsys):
    store = copied_store(here)
    by_filter = ("store", "rm", "--where", "retrain_index is None")
    out = run_text(capsys, *by_filter)
    assert "would be removed" in out and "Add --yes" in out and "1\u00a0snapshot fine-tuned from these stay" in out
    assert len(store.summaries()) == 2
    assert run_json(capsys, *by_filter, "--yes")["orphaned"] == [store.resolve("tuned")]
    assert list(store.refs()) == ["tuned"]
    assert run_json(capsys, *by_filter, "--yes")["removed"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected names of snapshots or --where"),
        (["tuned", "--where", "accuracy > 0"], "found both or neither"),
        (["tune"], "no snapshot has the name or id 'tune'; did you mean 'tuned'?"),
        (["tuned", "missing"], "no snapshot has the name or id 'missing'"),
    ],
)
def test_rm_removes_nothing_that_is_not_named_in_full(here, capsys, arguments, message):
    store = copied_store(here)
    assert main(["store", "rm", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert len(store.summaries()) == 2


def test_du_says_who_holds_the_bytes(here, capsys):
    (group,) = run_json(capsys, "store", "du")["groups"]
    assert (group["group"], group["num_snapshots"]) == ("base", 2)
    by_dataset = {one["group"]: one for one in run_json(capsys, "store", "du", "--by", "dataset")["groups"]}
    assert set(by_dataset) == {"pets", "unknown"}
    assert by_dataset["pets"]["own_bytes"] < 0.01 * by_dataset["pets"]["held_bytes"]
    assert "by no snapshot: `store gc` frees these" in run_text(capsys, "store", "du", "--by", "age")


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("accuracy", ["tuned", "base"]),
        ("-accuracy", ["tuned", "base"]),
        ("name", ["base", "tuned"]),
        ("-names", ["tuned", "base"]),
        ("-retrain_index", ["tuned", "base"]),
    ],
)
def test_ls_sorts_and_keeps_what_lacks_the_field_last(here, capsys, sort, names):
    listed = run_json(capsys, "store", "ls", "--sort", sort)["snapshots"]
    assert [one["names"] for one in listed] == [[name] for name in names]
    assert run_json(capsys, "store", "ls", "--sort", sort, "--limit", "1")["snapshots"] == listed[:1]


def test_ls_of_an_unknown_field_is_a_mistake(here, capsys):
    assert main(["store", "ls", "--sort", "acuracy"]) == 2
    assert "--sort acuracy: unknown field 'acuracy'; did you mean 'accuracy'?" in capsys.readouterr().err


def test_ls_as_csv_and_markdown_has_every_field(here, capsys):
    listed = run_json(capsys, "store", "ls")["snapshots"]
    rows = list(csv.DictReader(io.StringIO(run_text(capsys, "store", "ls", "--format", "csv"))))
    assert [row["id"] for row in rows] == [one["id"] for one in listed]
    assert list(rows[0]) == list(listed[0])
    assert {row["names"]: row["accuracy"] for row in rows} == {"base": "", "tuned": "0.75"}
    head, rule, *lines = run_text(capsys, "store", "ls", "--format", "md").splitlines()
    assert head.split(" | ")[1] == "architecture" and rule.count("---") == len(listed[0]) and len(lines) == 2


def test_the_beginning_of_a_name_will_do_where_it_is_unique(here, capsys):
    assert run_json(capsys, "store", "show", "tun")["names"] == ["tuned"]
    store = copied_store(here)
    store.set_ref("tuned-again", store.resolve("tuned"))
    assert run_json(capsys, "store", "show", "tun")["names"] == ["tuned", "tuned-again"]
    store.set_ref("tunnel", store.resolve("base"))
    assert main(["store", "show", "tun"]) == 2
    assert "'tun' is a prefix of 3 names: tuned, tuned-again, tunnel" in capsys.readouterr().err
    assert run_json(capsys, "store", "show", "tuned")["names"] == ["tuned", "tuned-again"]
