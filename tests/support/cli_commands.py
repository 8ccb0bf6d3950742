"""Run commands in this process or another one, and look at what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from raysnap.cli.app import main


def make_dataset(root: Path, num_images: int = 6) -> Path:
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(num_images):
                colour = (255 * label, 40 * index, 100 + 20 * (split == "val"))
                Image.new("RGB", (40, 40), colour).save(root / split / name / f"{index}.png")
    return root


def listing(folder: Path) -> dict[str, int]:
    """Every path below a folder, and when each file was written; caches, which may come and go, are left out."""
    found = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ".raysnap"]
        found |= dict.fromkeys((f"{parent}/{name}" for name in folders), 0)
        kept = (Path(parent, name) for name in files if not name.startswith("index.sqlite"))
        found |= {str(path): path.stat().st_mtime_ns for path in kept}
    return found


def run_json(capsys, *arguments: str, exit_code: int = 0) -> dict:
    """Return the one document that a command prints."""
    assert main([*arguments, "--json"]) == exit_code
    return json.loads(capsys.readouterr().out)


def run_text(capsys, *arguments: str, exit_code: int = 0) -> str:
    assert main(list(arguments)) == exit_code
    out, err = capsys.readouterr()
    assert exit_code or not err
    assert all(line == line.rstrip() for line in out.splitlines())
    return out


def process(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "raysnap", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False, **options)
