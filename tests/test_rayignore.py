"""What `ray job submit --working-dir .` uploads from a checkout, by Ray's own function: code and job files."""

import shutil
import zipfile

from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from tests.support import ROOT


def test_an_upload_has_code_and_job_files_and_nothing_else(tmp_path):
    checkout = tmp_path / "checkout"
    for name in ("raysnap", "configs", "scripts"):
        shutil.copytree(ROOT / name, checkout / name)
    for name in (".rayignore", ".gitignore", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, checkout)
    for name in (".git/x", ".venv/x", "data/x.jpg", "my-store/x.safetensors", "runs/a/x", "quickstart/x", "x.pth"):
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"large")
    (checkout / "my_job.yaml").touch()
    package_path = tmp_path / "package.zip"
    excludes = get_runtime_env_default_excludes()
    create_package(str(checkout), package_path, include_gitignore=True, excludes=excludes)
    names = zipfile.ZipFile(package_path).namelist()
    assert {name.split("/")[0] for name in names} == {"raysnap", "configs", "scripts", "my_job.yaml"}
    assert {"raysnap/__main__.py", "configs/quickstart.yaml", "scripts/sweep.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
    assert package_path.stat().st_size < 4_000_000
