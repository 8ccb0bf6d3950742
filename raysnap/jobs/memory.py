"""What a job's fine-tunes from stored snapshots came to, written into the store's records as each ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raysnap.config.choices import Role
from raysnap.jobs.data import JobData
from raysnap.jobs.job import Job
from raysnap.runs.trial_rows import TrialRow
from raysnap.store.records import Recipe, SearchedFrom, StartFacts, StartRecord, TargetFacts
from raysnap.training.trial import Trial


@dataclass
class Memory:
    """Writes records of a stage's trials.

    Attributes:
        bases: the snapshot that trials start from, by their `base_key`; None where it was drawn for the trial.
        searched: what a search said of a start, by the start's id.
    """

    job: Job
    data: JobData
    bases: Mapping[str, str | None]
    searched: Mapping[str, SearchedFrom] = field(default_factory=dict)
    _starts: dict[str, StartFacts] = field(default_factory=dict)

    def keep(self, trial: Trial, row: TrialRow) -> None:
        """Record what came of a trial, if that is known and final: one that went wrong says nothing of its start.

        A record has nothing that a repeat would change, so a trial that is recorded twice is one record.

        Raises:
            RaysnapError: the store can't be written, or the start's manifest can't be read.
        """
        start = self.bases.get(trial.base_key)
        if start is None or trial.role != Role.FINETUNE or not row.is_final or row.val_accuracy is None:
            return
        self.job.store.put_record(
            StartRecord(
                start=self._start_facts(start),
                dataset=self._target_facts(trial),
                recipe=Recipe(
                    retrain_index=trial.retrain_index,
                    image_size=trial.image_size or self.job.config.image_size,
                    seed=trial.seed,
                    train=trial.train.model_dump(mode="json") | {"batch_size": row.batch_size},
                ),
                num_epochs=len(row.history),
                is_stopped=not row.is_done,
                metrics=row.metrics,
                searched=self.searched.get(start),
            )
        )

    def _start_facts(self, start: str) -> StartFacts:
        if start not in self._starts:
            manifest = self.job.store.manifest(start)
            lineage = [manifest, *self.job.store.lineage(manifest)]
            self._starts[start] = StartFacts(
                snapshot=start,
                architecture=manifest.architecture,
                lineage=tuple(one.base for one in lineage if one.base is not None),
                dataset=manifest.dataset.name if manifest.dataset else None,
            )
        return self._starts[start]

    def _target_facts(self, trial: Trial) -> TargetFacts:
        dataset, num_items = self.data.datasets[trial.trained_on], self.data.num_items[trial.trained_on]
        return TargetFacts(
            kind="text_classification" if dataset.kind == "texts" else "image_classification",
            name=dataset.name,
            digest=dataset.fingerprint,
            num_classes=len(dataset.classes),
            num_train=num_items["train"],
            num_val=num_items["val"],
            num_test=num_items.get("test", 0),
        )
