"""What is said of a checkpoint that can't be looked through; tests/faults/test_hostile_files.py has hostile ones."""

import errno
from pathlib import Path

import pytest
import torch

from raysnap.errors import WeightsError
from raysnap.models.foreign_pickles import check_checkpoint


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM], ids=errno.errorcode.get)
def test_a_limit_of_the_system_is_no_fault_of_the_file(tmp_path, monkeypatch, code):
    path = tmp_path / "sound.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    check_checkpoint(path)

    def refuse(*arguments, **options):
        raise OSError(code, "no more")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(WeightsError, match="too many open files|out of memory") as caught:
        check_checkpoint(path)
    assert "expected a checkpoint" not in str(caught.value)
