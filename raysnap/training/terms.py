"""What stays fixed during one fine-tune."""

from __future__ import annotations

from dataclasses import dataclass

from raysnap.config.train import TrainConfig
from raysnap.models.numerics import Numerics
from raysnap.training.feeds import View
from raysnap.training.worker import Worker


@dataclass(frozen=True)
class Terms:
    """What holds for the whole of one fine-tune."""

    config: TrainConfig
    numerics: Numerics
    worker: Worker
    seed: int
    views_seed: int

    def view(self, epoch: int) -> View | None:
        """How an epoch sees the training items; None is as they are."""
        match self.config.views:
            case 1:
                return None
            case None:
                return View(self.seed, epoch)
            case num_views:
                return View(self.views_seed, (epoch - 1) % num_views)
