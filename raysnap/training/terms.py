"""What stays fixed during one fine-tune: configuration, numerics, worker and seeds."""

from __future__ import annotations

from dataclasses import dataclass

from raysnap.config.train import TrainConfig
from raysnap.models.numerics import Numerics
from raysnap.training.feeds import View
from raysnap.training.worker import Worker


@dataclass(frozen=True)
class Terms:
    """Configuration, numerics, worker and seeds of one fine-tune."""

    config: TrainConfig
    numerics: Numerics
    worker: Worker
    seed: int
    views_seed: int

    def view(self, epoch: int) -> View | None:
        """Return the view of the training items in an epoch; None leaves them unaugmented."""
        match self.config.views:
            case 1:
                return None
            case None:
                return View(self.seed, epoch)
            case num_views:
                return View(self.views_seed, (epoch - 1) % num_views)
