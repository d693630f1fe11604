"""Stopping bad trials early: a training reports to its study from its own process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import optuna

from backbones.cliptex.protocols import RunLog
from sweeps.errors import TrialPruned
from sweeps.storage import answering, open_storage

# Asynchronous successive halving: the better half continues after 1, 2, 4 … epochs.
HALVING = {"min_resource": 1, "reduction_factor": 2, "bootstrap_count": 0}


@dataclass(frozen=True)
class Pruning:
    """The trial of a training, in plain values.

    Attributes:
        storage: its complete address, which may hold a password and is never shown.
        study: name; trial: Optuna's id of the trial.
        metric: of the training, higher is better: ``val/i2t_R@1`` …
    """

    storage: str = field(repr=False)
    study: str
    trial: int
    metric: str

    def watched(self, run: RunLog, per_epoch: int) -> RunLog:
        """A log that passes everything to ``run`` and raises ``TrialPruned`` for a bad trial.

        Args:
            per_epoch: steps an epoch; trials are compared after epochs.
        """
        with answering(self.storage):
            study = optuna.load_study(
                study_name=self.study,
                storage=open_storage(self.storage, create=False),
                sampler=optuna.samplers.RandomSampler(),
                pruner=optuna.pruners.SuccessiveHalvingPruner(**HALVING),
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
        metric = self.pruning.metric
        if metric not in metrics:
            return
        value, epoch = metrics[metric], max(1, round(step / self.per_epoch))
        with answering(self.pruning.storage):
            # Optuna's pruner prefers values in the study's own direction
            sign = 1 if self.trial.study.direction.name == "MAXIMIZE" else -1
            self.trial.report(sign * value, epoch)
            if self.trial.should_prune():
                raise TrialPruned(
                    f"{metric} {value:.4g} after epoch {epoch} is not in the better half"
                )
