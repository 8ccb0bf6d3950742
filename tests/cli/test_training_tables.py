"""Tables of commands that fine-tune: their contents, not their looks."""

from types import SimpleNamespace

from raysnap.cli.training_tables import trained_table
from tests.support.terminal import shown


def trial(name: str, dataset: str, val: float | None, test: float | None, architecture: str = "resnet18"):
    return SimpleNamespace(
        name=name, dataset=dataset, architecture=architecture, val_accuracy=val, test_accuracy=test, total_s=1.5
    )


def test_trials_are_summed_up_by_dataset_and_architecture():
    trials = [
        trial("003", "dogs", 0.5, 0.9),
        trial("001", "cars", 0.25, None),
        trial("004", "dogs", 0.75, 0.6),
        trial("005", "dogs", None, None),
        trial("006", "dogs", None, None, "vit_b_32"),
    ]
    _, *rows = [[cell.strip() for cell in row] for row in shown(trained_table(trials))]
    assert rows == [
        ["cars", "resnet18", "1", "0.250", "0.250", "–", "001", "1.50\u00a0s"],
        ["dogs", "resnet18", "3", "0.625", "0.750", "0.600", "004", "4.50\u00a0s"],
        ["dogs", "vit_b_32", "1", "–", "–", "–", "–", "1.50\u00a0s"],
    ]
