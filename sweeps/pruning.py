"""Stopping bad trials early: a training reports from its own process, wherever that is, and stops
itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import optuna

from backbones.cliptex.protocols import RunLog
from sweeps.errors import TrialPruned
from sweeps.storage import answering, open_storage

# Asynchronous successive halving: the better half goes on after 1, 2, 4 … epochs.
HALVING = {"min_resource": 1, "reduction_factor": 2, "bootstrap_count": 0}


@dataclass(frozen=True)
class Pruning:
    """The trial that a training belongs to, in plain values.

    Attributes:
        storage: its address in full; it may hold a password, so it travels with a unit's arguments
            and is never shown.
        study: name; trial: Optuna's id of the trial.
        metric: what is watched, of which more is better: ``val/i2t_R@1`` …
    """

    storage: str = field(repr=False)
    study: str
    trial: int
    metric: str

    def watched(self, run: RunLog, per_epoch: int) -> RunLog:
        """A log that passes everything to ``run``, and ends the training (``TrialPruned``) when its
        trial should be stopped: trials are compared after epochs, of ``per_epoch`` steps."""
        sampler, pruner = (
            optuna.samplers.RandomSampler(),
            optuna.pruners.SuccessiveHalvingPruner(**HALVING),
        )
        with answering(self.storage):
            storage = open_storage(self.storage, create=False)
            study = optuna.load_study(
                study_name=self.study, storage=storage, sampler=sampler, pruner=pruner
            )
            return _Watched(self, run, per_epoch, optuna.Trial(study, self.trial))


@dataclass(frozen=True)
class _Watched:
    pruning: Pruning
    run: RunLog
    per_epoch: int
    trial: optuna.Trial

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log_metrics(metrics, step)
        if (value := metrics.get(self.pruning.metric)) is None:
            return
        epoch = max(1, round(step / self.per_epoch))
        with answering(self.pruning.storage):
            # Optuna's pruner keeps what is best in the study's own direction
            sign = (
                1.0 if self.trial.study.direction == optuna.study.StudyDirection.MAXIMIZE else -1.0
            )
            self.trial.report(sign * value, epoch)
            if self.trial.should_prune():
                raise TrialPruned(
                    f"{self.pruning.metric} {value:.4g} after epoch {epoch} is not among the better"
                    " half"
                )
