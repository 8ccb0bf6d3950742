"""Addresses of other places, and folders that Ray deletes with a job, are refused wherever a folder is given."""

import pickle
from pathlib import Path

import pytest

import raysnap
from raysnap.cli.app import main
from raysnap.config.bench import BenchConfig
from raysnap.config.folders import address_fault, folder_fault, store_path
from raysnap.config.load import load_config, validate
from raysnap.config.quickstart import QuickstartConfig
from raysnap.errors import ConfigError, UsageError
from tests.support.cli_commands import listing
from tests.support.job_files import load, refusal

ADDRESSES = ["s3://bucket/runs", "gs://bucket", "hdfs://host:9000/x", "https://host/x", "file:///x", "memory://x"]
JOB = "kind: generate\ndatasets: [a]\n"


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_no_folders(address):
    expected = f"addresses such as {address} are not supported yet; give a folder that all nodes mount"
    assert address_fault(address) == folder_fault(address) == expected
    assert address_fault(Path(address)) is not None, "a Path has lost one of the slashes"


@pytest.mark.parametrize(
    "path", ["runs/a", "/shared/a:b", "./s3:/a", "C:/data", "a:b", "..", "", "2026-01-31T12:00:00"]
)
def test_other_paths_are_folders(path):
    assert address_fault(path) is None
    assert folder_fault(path) is None


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_job_file_may_begin_any_path_with_a_tilde(home):
    job = load(
        home,
        "kind: generate\nrun_dir: ~/run\nstore: ~/store\ndata_dir: ~/data\ndatasets: [~/a, b]\n"
        "base: {weights: ~/w.pth, pretraining: {dataset: ~/p}}\n",
    )
    assert (job.run_dir, job.store, job.data_dir) == (home / "run", home / "store", home / "data")
    assert job.datasets == (f"{home}/a", "b")
    assert (job.base.weights, job.base.pretraining.dataset) == (f"{home}/w.pth", f"{home}/p")
    (home / "bench.yaml").write_text("kind: bench\nstore: ~/store\ndatasets: ~/a\nrun_dir: ~/run\nsynthetic_dir: ~/s\n")
    bench = load_config(home / "bench.yaml", [], BenchConfig)
    assert (bench.run_dir, bench.synthetic_dir) == (home / "run", home / "s")
    assert (bench.store, bench.datasets) == ((home / "store",), (f"{home}/a",))


def test_commands_and_functions_take_paths_with_a_tilde(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    raysnap.Store.open("~/store", create=True)
    assert main(["store", "ls", "--store=~/store"]) == 0
    assert main(["store", "add", "~/none.pth", "--arch", "resnet18", "--store=~/store"]) == 2
    assert f"raysnap: {home}/none.pth" in capsys.readouterr().err
    assert main(["data", "check", "~/none"]) == 2
    assert f"'{home}/none'" in capsys.readouterr().err
    with pytest.raises(raysnap.DataError, match=f"'{home}/none'"):
        raysnap.open_dataset("~/none", "data")
    with pytest.raises(ConfigError, match=f"{home}/none.yaml"):
        load_config("~/none.yaml")
    assert not (home / "~").exists()


def test_only_a_leading_tilde_of_a_known_user_is_a_home(home):
    for path in ("a~", "a/~/b", "./~", "~no-such-user/a"):
        assert load(home, f"kind: generate\ndatasets: [a]\nstore: {path}\n").store == Path(path)


@pytest.mark.parametrize(
    "line",
    [
        "run_dir: s3://b/x",
        "data_dir: s3://b/x",
        "datasets: [s3://b/x]",
        "base: {weights: s3://b/x}",
        "base: {pretraining: {dataset: s3://b/x}}",
    ],
)
def test_a_job_file_names_the_key_of_an_address(tmp_path, line):
    text = "kind: generate\n" + line + ("" if line.startswith("datasets") else "\ndatasets: [a]")
    message = refusal(tmp_path, text)
    assert f"{line.split(':')[0]}" in message
    assert message.endswith("addresses such as s3://b/x are not supported yet; give a folder that all nodes mount")


@pytest.mark.parametrize(
    "arguments",
    [
        ["quickstart", "--dir"],
        ["search", "--data"],
        ["search", "--data", "a", "--data-dir"],
        ["data", "check"],
        ["data", "prepare", "pets", "--source"],
        ["data", "prepare", "pets", "--data-dir"],
        ["store", "export", "a", "--to"],
        ["store", "add", "--arch", "resnet18"],
        ["report", ".", "--out"],
        ["generate"],
    ],
    ids=" ".join,
)
def test_a_command_names_the_option_of_an_address(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "s3://b/x"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "addresses such as s3://b/x are not supported yet" in line
    if arguments[-1].startswith("--"):
        assert arguments[-1] in line
    assert listing(tmp_path) == {}


@pytest.mark.parametrize(
    "call",
    [
        lambda address: raysnap.open_dataset(address, "data"),
        lambda address: raysnap.open_dataset("shapes-shape-a", address),
    ],
)
def test_the_python_interface_refuses_addresses(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="addresses such as s3://b/x are not supported yet"):
        call("s3://b/x")
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("address", [one for one in ADDRESSES if not one.startswith("s3:")] + ["s3://b/a b", "s3://x"])
def test_stores_are_in_folders_or_buckets_of_s3(tmp_path, monkeypatch, capsys, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="not supported yet|expected a store's address"):
        raysnap.Store.open(address, create=True)
    assert main(["store", "ls", "--store", address]) == 2
    assert "--store" in capsys.readouterr().err
    assert address in refusal(tmp_path, f"kind: generate\ndatasets: [a]\nstore: '{address}'")
    assert len(listing(tmp_path)) == 1, "the job file"


def test_an_address_stays_one_on_its_way(tmp_path):
    config = load(tmp_path, "kind: generate\ndatasets: [a]\nstore: s3://bucket/a/b/\n")
    assert config.store == store_path(Path("s3://bucket/a/b")) == "s3://bucket/a/b"
    assert config.model_dump(mode="json")["store"] == "s3://bucket/a/b"
    assert pickle.loads(pickle.dumps(config)).store.name == "b"


@pytest.fixture
def uploaded(tmp_path, monkeypatch) -> Path:
    """Return the current folder: one in which Ray runs what `ray job submit` uploaded."""
    folder = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0" / "project"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_a_submitted_job_keeps_nothing_in_its_upload(uploaded):
    for path in ("runs/a", "../data", str(uploaded / "store")):
        message = f"expected a folder that outlives the job, found {path} in Ray's temporary copy"
        assert folder_fault(path).startswith(message)
    assert folder_fault("/shared/runs") is None
    assert folder_fault("../../../../../elsewhere") is None


def test_a_submitted_job_names_its_relative_folders(uploaded):
    message = refusal(Path(), JOB)
    assert all(f"{key}: expected a folder that outlives the job" in message for key in ("run_dir", "store", "data_dir"))
    kept = load(Path(), JOB, "run_dir=/shared/run", "store=/shared/store", "data_dir=/shared/data")
    assert kept.store == Path("/shared/store")


def test_a_submitted_benchmark_may_name_synthetic_sets(uploaded):
    places = {"run_dir": "/shared/run", "data_dir": "/shared/data", "synthetic_dir": "/shared/sets", "datasets": ["a"]}
    sets = {"store": ["made", "/shared/store"], "synthetic_sets": {"made": {}}}
    assert len(validate(places | sets, BenchConfig, "job").store) == 2
    with pytest.raises(ConfigError, match="job: store: expected a folder that outlives the job, found other in"):
        validate(places | sets | {"store": "other"}, BenchConfig, "job")


def test_a_submitted_search_needs_only_an_absolute_store(uploaded, capsys):
    assert main(["search", "--data", "a"]) == 2
    assert "Invalid value for '--store': expected a folder that outlives the job" in capsys.readouterr().err
    assert main(["search", "--data", "a", "--store", "/no/such/store"]) == 2
    assert "/no/such/store: expected a model store" in capsys.readouterr().err


def test_a_quickstart_in_a_job_is_asked_for_its_folder_only(uploaded, tmp_path):
    config = load_config("quickstart", [], QuickstartConfig)
    assert config.inside(tmp_path / "shared").generate.run_dir == tmp_path / "shared" / "run"
    with pytest.raises(UsageError, match=r"--dir quickstart: expected a folder that outlives the job"):
        config.inside(Path("quickstart"))


def test_the_folder_of_synthetic_sets_matters_if_there_are_any(uploaded, tmp_path):
    places = [f"run_dir={tmp_path}/run", f"data_dir={tmp_path}/data"]
    assert load_config("search_bench_small", [*places, "synthetic_sets={}", f"store={tmp_path}/store"])
    with pytest.raises(ConfigError, match="synthetic_dir: expected a folder that outlives the job"):
        load_config("search_bench_small", places)
