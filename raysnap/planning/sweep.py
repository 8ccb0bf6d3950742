"""What a sweep will do, known before Ray starts and without torch: its points as trials, and what they start from."""

from __future__ import annotations

import json

from raysnap.config.choices import Role
from raysnap.config.sweep import PointConfig, SweepConfig
from raysnap.errors import ConfigError
from raysnap.models.architecture import label
from raysnap.planning.extras import check_packages
from raysnap.planning.generate import TrialsPlan, check_plan
from raysnap.planning.points import point_trial, sample_points
from raysnap.training.trial import Trial, derive_seed, slug

MIN_BRED = 4


def plan_sweep(config: SweepConfig) -> TrialsPlan:
    """Return the sweep's trials and the bases they start from, checked against what is there; writes nothing.

    With Optuna the trials are not known yet: the plan has one random draw in their place.

    Raises:
        RaysnapError: a point is invalid, or an architecture, a dataset or a base's weights are not available.
    """
    check_packages(config)
    points = sample_points(config)
    found = [point_trial(config, point, number, len(points)) for number, point in enumerate(points, start=1)]
    if config.scheduler == "pbt" and len(found) < MIN_BRED:
        raise ConfigError(f"num_samples: `scheduler: pbt` needs at least {MIN_BRED} trials, found {len(found)}")
    bases: dict[str, Trial] = {}
    weights: dict[str, str] = {}
    trials = []
    for trial, point_config in found:
        facts = json.dumps(
            [point_config.architecture, point_config.image_size, point_config.base.model_dump(mode="json")]
        )
        if facts not in bases:
            bases[facts] = _base_trial(config, point_config, len(bases) + 1)
            weights[bases[facts].id] = point_config.base.weights
        trials.append(trial.model_copy(update={"base": bases[facts].id}))
    return check_plan(config, list(bases.values()), weights, trials)


def _base_trial(config: SweepConfig, point_config: PointConfig, number: int) -> Trial:
    """Return the trial that makes a base which points start from; one without a dataset is stored untrained."""
    pretraining = point_config.base.pretraining
    words = [f"base-{number}", label(point_config.architecture), *([slug(pretraining.dataset)] if pretraining else [])]
    name = slug("-".join(words))
    return Trial(
        id=name,
        role=Role.BASE,
        architecture=point_config.architecture,
        dataset=pretraining.dataset if pretraining else None,
        retrain_index=None,
        seed=derive_seed(config.seed, "base", point_config.architecture),
        train=pretraining.train if pretraining else config.train,
        base=name,
        image_size=point_config.image_size,
    )
