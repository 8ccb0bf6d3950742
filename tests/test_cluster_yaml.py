"""cluster.yaml: valid for Ray's launcher, in step with constraints.txt, asking for a token, holding no secret."""

import re
from pathlib import Path

import pytest
import yaml

from tests.support import ROOT


@pytest.fixture
def text() -> str:
    return (ROOT / "cluster.yaml").read_text(encoding="utf-8")


@pytest.fixture
def cluster(text) -> dict:
    return yaml.safe_load(text)


def validate(cluster: dict) -> dict:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster)
    validate_config(prepared)
    return prepared


def test_rays_launcher_accepts_it(cluster, monkeypatch):
    monkeypatch.chdir(ROOT)
    prepared = validate(cluster)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    assert prepared["available_node_types"]["gpu_worker"]["max_workers"] <= prepared["max_workers"]


def test_rays_launcher_would_refuse_a_typo(cluster):
    import jsonschema

    cluster["available_node_types"]["gpu_worker"]["max_worker"] = 4
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate(cluster)


def test_every_node_and_every_driver_asks_for_the_token(cluster):
    starts = [
        command
        for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"])
        for command in commands
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_dashboard_listens_on_loopback_only(cluster, text):
    assert any("--dashboard-host=127.0.0.1" in command for command in cluster["head_start_ray_commands"])
    assert "0.0.0.0" not in text


@pytest.mark.parametrize(
    "secret",
    [
        r"AKIA[0-9A-Z]{12}",
        r"(?i)secret_?(access_?)?key\s*[:=]",
        r"(?i)password\s*[:=]",
        r"RAY_AUTH_TOKEN=",
        r"BEGIN [A-Z ]*PRIVATE KEY",
        r"\b[0-9a-fA-F]{32,}\b",
        r"\b[A-Za-z0-9+/]{40,}\b",
    ],
)
def test_it_holds_no_secret(text, secret):
    assert re.search(secret, text) is None


def test_the_images_bring_the_ray_that_constraints_txt_names(cluster):
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (ray,) = [pin.removeprefix("ray==") for pin in pins if pin.startswith("ray==")]
    for image in (cluster["docker"]["head_image"], cluster["docker"]["worker_image"]):
        assert image.startswith(f"rayproject/ray:{ray}-py3")


def test_every_node_type_names_an_image_to_fill_in(cluster):
    images = [node_type["node_config"]["ImageId"] for node_type in cluster["available_node_types"].values()]
    assert images == ["ami-EDIT"] * 2, "Ray would take an old one by itself; EC2 refuses this one until it is edited"


def test_a_node_without_the_shared_folder_does_not_start(cluster):
    (mount,) = [command for command in cluster["initialization_commands"] if "sudo mount " in command]
    assert "mountpoint -q /shared || sudo mount" in mount and mount.endswith(" /shared")
    assert "--volume /shared:/shared" in cluster["docker"]["run_options"]
    assert cluster["docker"]["worker_run_options"] == ["--gpus all"]


def test_its_own_examples_name_what_the_container_has(text):
    examples = re.findall(
        r"^#   ray submit cluster.yaml (scripts/\w+\.py) -- (.*(?:\n#       .*)?)", text, re.MULTILINE
    )
    assert {script for script, _ in examples} == {"scripts/doctor.py", "scripts/generate.py"}
    for script, arguments in examples:
        assert (ROOT / script).is_file()
        for word in re.sub(r"  +\S.*| \\\n#", "", arguments).split():
            shipped = ROOT / "configs" / f"{word}.yaml"
            assert word.partition("=")[2].startswith("/shared/") or word == "/shared" or shipped.is_file(), word


def test_the_project_files_that_it_sends_exist(cluster):
    sent = [Path(local) for local in cluster["file_mounts"].values() if not local.startswith("~")]
    assert Path("raysnap") in sent
    assert Path("constraints.txt") in sent
    assert [path for path in sent if not (ROOT / path).exists()] == []
