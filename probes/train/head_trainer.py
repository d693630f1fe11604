"""One head of a task group: its own weights, optimizer, schedules, random numbers and curves, and
the state it resumes from.

Nothing of it depends on the other heads of the group, so it ends the same alone, in any group, and
however often it was stopped.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS, PARAM_SCHEDULERS
from torch import Tensor

from cliptex_common.device import is_out_of_memory, prefers_bf16, takes_pinned_memory
from cliptex_common.errors import NonFiniteLoss, OutOfMemory
from cliptex_common.files import content_key
from cliptex_common.out_of_memory import out_of_memory
from probes.base import Context, Cost, Head
from probes.train.group_data import GroupDataset
from probes.train.sampling import isolated_rng, seed_iteration
from probes.training_state import load_state, save_state

STATE_FILE = "training-state.pth"
SAVES = 20  # of a training
CHECK_EVERY = 20  # iterations between two checks of the losses: each waits for the device


class HeadTrainer:
    """A head, from its config to its trained model and its metrics.

    Its state is saved ``SAVES`` times, the last time at the end, in
    ``work_dir/training-state.pth``: the head's weights (the frozen backbone is not part of them),
    optimizer, schedules, iteration and training time. It is replaced atomically, never after a loss
    that is not finite, and read with ``weights_only=True``. A state is resumed only by a head of
    the same config, seed, backbone, data and precision.

    Args:
        config: as for ``probes.train.loop.resolved``.
        context: of its task: seed, device, folder, log.
        leave_out: items of the training set that are not trained on.
        index: of the head in its group; train, val: the group's data.

    Attributes:
        model: complete, as the config says: it can predict without the group.
        evaluator: of its predictions; its metric objects keep per-image scores.
        iteration: number of finished iterations; resumed_at: how many of them earlier processes
            did.
        error: why it left the group.
        metrics: of the evaluator.
        train_dataset, val_dataset: of this head's ground truth.
        cost: of training (with that of killed processes up to their last state), evaluation and
            encoding: equal shares among the heads of the group.
        notes: on the features, for the user.
    """

    notes: list[str]

    def __init__(
        self,
        config: Config,
        context: Context,
        leave_out: Sequence[int],
        index: int,
        train: GroupDataset,
        val: GroupDataset,
    ) -> None:
        self.config, self.context, self.index = config, context, index
        self.train_dataset = train.datasets[train.indices[index]]
        self.val_dataset = val.datasets[val.indices[index]]
        self.max_iters: int = config.train_cfg["max_iters"]
        # boxes need more digits than bf16 has; logits do not, and their losses are in fp32
        self.autocast = prefers_bf16(context.device) and config.get("default_scope") == "mmseg"
        trained = {
            name: part for name, part in config.to_dict().items() if not name.startswith("val_")
        }
        self.key = content_key(
            {
                "config": trained,
                "seed": context.seed,
                "backbone": context.backbone.identity(),
                "data": context.data.fingerprint,
                "leave_out": tuple(leave_out),
                "precision": "bf16" if self.autocast else "fp32",
            }
        )
        self.iteration = self.resumed_at = 0
        self.cost = Cost()
        self.metrics: dict[str, float] = {}
        self.error: Exception | None = None
        self._unchecked: list[tuple[int, float, Mapping[str, Tensor]]] = []  # (iteration, lr, loss)
        with isolated_rng(context.seed % 2**32):
            self.model: Any = MODELS.build(config.model)
            self.model.init_weights()
        self.model.to(context.device)
        self.model.data_preprocessor._non_blocking = takes_pinned_memory(context.device)
        wrapper = {**config.optim_wrapper, "type": "QuietOptimWrapper"}
        self.optim_wrapper: OptimWrapper = build_optim_wrapper(self.model, wrapper)
        self.schedulers = [
            PARAM_SCHEDULERS.build(dict(schedule), default_args={"optimizer": self.optim_wrapper})
            for schedule in config.get("param_scheduler") or []
        ]
        self.evaluator = Evaluator(config.val_evaluator)
        if context.head is not None:
            self.model.load_state_dict(context.head.tensors)
            self.iteration = self.max_iters
        else:
            self._resume()
        self.optim_wrapper.initialize_count_status(self.model, self.iteration, self.max_iters)

    @property
    def trains(self) -> bool:
        """Whether it has iterations left."""
        return self.error is None and self.iteration < self.max_iters

    def step(self, data: Mapping[str, Any]) -> None:
        """Take one training step on a prepared batch; ``check_and_save`` notices a loss that is not
        finite."""
        seed_iteration(self.context.seed, self.iteration)
        rate = float(self.optim_wrapper.get_lr()["lr"][0])
        with self._precision(), self.optim_wrapper.optim_context(self.model):
            losses = self.model._run_forward(data, mode="loss")
        total, values = self.model.parse_losses(losses)
        self.optim_wrapper.update_params(total)
        for scheduler in self.schedulers:
            scheduler.step()
        self.iteration += 1
        self._unchecked.append((self.iteration, rate, values))

    def check_and_save(self) -> None:
        """After a step: check losses, log curves and save the state where they are due.

        Raises:
            NonFiniteLoss: names the first iteration whose losses were not finite, and the losses.
        """
        every = max(1, self.max_iters // SAVES)
        due = self.iteration % every == 0 or self.iteration == self.max_iters
        if due or len(self._unchecked) >= CHECK_EVERY:
            self._check_losses()
        if due:
            self._save()

    def release(self) -> None:
        """Free what only its training takes on the device, for the heads that go on."""
        self.optim_wrapper.zero_grad()
        self.optim_wrapper.optimizer.state.clear()
        self._unchecked.clear()

    def discard(self) -> None:
        """Free all that it has on the device: it failed, and is not used again."""
        self.release()
        self.schedulers.clear()
        del self.model, self.optim_wrapper
        gc.collect()  # optimizers and their schedules are reference cycles

    def score(self, data: Mapping[str, Any]) -> None:
        """Predict a prepared batch, and hand the predictions to the evaluator: all or, where it
        fails, none."""
        if "data_samples" in data:  # predictions are written into samples, which heads may share
            data = {**data, "data_samples": [sample.clone() for sample in data["data_samples"]]}
        scored = [len(metric.results) for metric in self.evaluator.metrics]
        try:
            with self._precision():
                predictions = self.model._run_forward(data, mode="predict")
            self.evaluator.process(data_samples=predictions, data_batch=data)
        except Exception:
            for metric, count in zip(self.evaluator.metrics, scored, strict=True):
                del metric.results[count:]
            raise

    def head(self) -> Head:
        """The trained head: everything but the frozen backbone.

        The config in its metadata is that of the model, which encodes images itself where it is not
        given features.
        """
        pipeline = self.config.val_dataloader.dataset["pipeline"]
        return Head.of(
            self.context,
            self.model.state_dict(),
            scope=self.config.default_scope,
            imports=list(self.config.custom_imports.imports),
            model=self.config.model.to_dict(),
            pipeline=[part for part in pipeline if part["type"] != "LoadGroundTruth"],
        )

    def _check_losses(self) -> None:
        """Read the losses since the last check (only this waits for the device) and log them."""
        names, every = list(self._unchecked[-1][2]), max(1, self.max_iters // 500)
        rows = torch.stack(
            [
                torch.stack([losses[name].detach().float() for name in names])
                for *_, losses in self._unchecked
            ]
        )
        for (iteration, rate, _), row in zip(self._unchecked, rows.tolist(), strict=True):
            losses = dict(zip(names, row, strict=True))
            infinite = [
                name
                for name, value in losses.items()
                if "loss" in name and not math.isfinite(value)
            ]
            if infinite:
                raise NonFiniteLoss(
                    f"the loss is not finite at iteration {iteration} ({', '.join(infinite)}); "
                    f"try a lower learning rate (--set lr=…) or precision=fp32"
                )
            if iteration % every == 0 or iteration in (1, self.max_iters):
                curves = {**losses, "lr": rate}
                self.context.log.log_metrics(
                    {f"train/{name}": value for name, value in curves.items()}, iteration
                )
                text = "  ".join(f"{name}: {value:.4g}" for name, value in curves.items())
                print_log(f"Iter(train) [{iteration}/{self.max_iters}]  {text}", "current")
        self._unchecked.clear()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.autocast)

    def _resume(self) -> None:
        warn = partial(print_log, logger="current", level=logging.WARNING)
        state = load_state(Path(self.context.work_dir, STATE_FILE), self.key, warn)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.iteration = self.resumed_at = state["iteration"]
        self.cost.seconds["train"] = state["seconds"]
        print_log(f"resumed at iteration {self.iteration} of {self.max_iters}", "current")

    def _save(self) -> None:
        state = {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimizer": self.optim_wrapper.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "seconds": self.cost.seconds["train"],
        }
        save_state(Path(self.context.work_dir, STATE_FILE), self.key, state)


@contextmanager
def failing_alone(trainer: HeadTrainer) -> Iterator[None]:
    """Record an error of the block as this trainer's, which leaves its group; the others go on."""
    try:
        yield
    except Exception as error:
        trainer.error = failure_of(error)
        if isinstance(trainer.error, OutOfMemory):
            trainer.release()


def failure_of(error: Exception) -> Exception:
    """What a head failed with: ``error``, or one line where the memory of the device ended."""
    if is_out_of_memory(error):
        advice = "lower batch_size or size (--set batch_size=…), or run the task alone"
        return out_of_memory(error, advice)
    return error


@OPTIM_WRAPPERS.register_module()
class QuietOptimWrapper(OptimWrapper):
    """mmengine's, without the log of the gradient's norm, which waits for the device at each
    step."""

    def _clip_grad(self) -> None:
        groups = self.optimizer.param_groups
        params = [param for group in groups for param in group["params"] if param.grad is not None]
        if params:
            self.clip_func(params, **self.clip_grad_kwargs)
