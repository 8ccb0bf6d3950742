"""Optuna's suggestions: within their bounds, conditions met, and a resumed study knows the past trials."""

import pytest

from raysnap.config.sweep import SweepConfig
from raysnap.planning.points import Point, point_trial
from raysnap.training.trial import Trial

pytest.importorskip("optuna")

from raysnap.planning.optuna_study import Study

CONFIG = SweepConfig.model_validate(
    {
        "datasets": ["shapes-shape-a"],
        "search_algorithm": "optuna",
        "num_samples": 12,
        "space": {
            "train.optimizer": {"choice": ["adam", "sgd"]},
            "train.lr": [
                {"when": {"train.optimizer": "sgd"}, "loguniform": [0.01, 0.1]},
                {"loguniform": [1e-4, 1e-2]},
            ],
            "retrain.index": {"choice": [1, 0]},
            "train.layer_lr_decay": {"choice": {"falling": 0.5, "flat": None}},
        },
    }
)


def make(point: Point, number: int) -> Trial:
    return point_trial(CONFIG, point, number, CONFIG.num_samples)[0]


def suggestions(study: Study) -> list[Trial]:
    found = []
    while (trial := study.suggest()) is not None:
        found.append(trial)
        study.tell(trial.id, trial.train.lr if trial.train.optimizer == "sgd" else None)
    return found


def test_a_study_suggests_as_many_trials_of_the_space_as_asked():
    found = suggestions(Study(CONFIG, 12, make))
    assert [trial.id[:3] for trial in found] == [f"{number:03d}" for number in range(1, 13)]
    for trial in found:
        low, high = (0.01, 0.1) if trial.train.optimizer == "sgd" else (1e-4, 1e-2)
        assert low <= trial.train.lr <= high
        assert trial.retrain_index in (0, 1)
        assert trial.train.layer_lr_decay == {"falling": 0.5, "flat": None}[trial.point["train.layer_lr_decay"]]
    assert {trial.train.optimizer for trial in found} == {"adam", "sgd"}


def test_same_seed_and_results_give_the_same_suggestions():
    assert suggestions(Study(CONFIG, 6, make)) == suggestions(Study(CONFIG, 6, make))


def test_a_resumed_study_keeps_its_points_and_suggests_others():
    before = suggestions(Study(CONFIG, 5, make))
    study = Study(CONFIG, 12, make, before, {before[0].id: 0.5, before[2].id: 0.25})
    known = {trial.number: trial for trial in study._study.trials}
    assert [known[number].value if known[number].state.is_finished() else None for number in range(5)] == [
        0.5,
        None,
        0.25,
        None,
        None,
    ]
    for number, trial in enumerate(before):
        lr = next(value for name, value in known[number].params.items() if name.startswith("train.lr"))
        assert lr == pytest.approx(trial.train.lr)
        assert CONFIG.space["retrain.index"][0].options[known[number].params["retrain.index#0"]] == trial.retrain_index
    points = [tuple(trial.point.values()) for trial in [*before, *suggestions(study)]]
    assert len(set(points)) == len(points) == 12
