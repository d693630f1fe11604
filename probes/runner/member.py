"""One head of a task group: its own weights, optimizer, schedules, random numbers and curves, and
the state it resumes from.

Nothing of it depends on who else is in the group, so it ends the same alone, in company, and
however often it was stopped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS, PARAM_SCHEDULERS
from torch import Tensor

from common.errors import NonFiniteLoss
from common.files import atomic_write, content_key
from probes.base import Context
from probes.runner import bridge
from probes.runner.sampling import seed_iteration

STATE = "training-state.pth"
AUTOCAST = ("cuda",)  # where heads of dense probes compute in bf16
LOOK = 20  # iterations between two looks at the losses: each look waits for the device


class Member:
    """A head, from its config to its trained model and what that scores.

    The state in ``work_dir/training-state.pth`` holds the head's weights (the frozen backbone is no
    part of them), optimizer, schedules, iteration, and what the training has cost so far. It is
    replaced atomically, never by one of a loss that is not finite, and read with
    ``weights_only=True``. The state of another config, seed, backbone or data is not used.

    Args:
        config: as for ``probes.runner.training.resolved``.
        context: of its task: seed, device, folder, log.
        leave_out: items of the training set that are not trained on.
        checkpoint_every: iterations between two states; a twentieth of the training when None. The
            last is always written.

    Attributes:
        model: whole, as the config says: it can predict without the group, with the frozen
            backbone.
        evaluator: of its predictions; its metric objects keep per-image scores and the like.
        iteration: how many are done; resumed_at: of them by earlier processes.
        error: why it left the group.
        metrics: what the evaluator returned; train_dataset, val_dataset: as the head saw them.
        cost: ``train_seconds`` (those of killed processes up to their last state included) and
            ``eval_seconds``, each an equal share among the heads that had part in it;
            ``train_images_per_second``, ``eval_images_per_second``; ``train_flops``, ``eval_flops``
            (as if the head were alone: one step each counted, times the number of steps) and, where
            features are kept, an equal share of what encoding cost; ``flops`` is the sum.
        notes: what was found damaged and made again.
    """

    def __init__(
        self,
        config: Config,
        context: Context,
        leave_out: tuple[int, ...] = (),
        checkpoint_every: int | None = None,
    ) -> None:
        self.config, self.context = config, context
        self.max_iters: int = config.train_cfg["max_iters"]
        self.every = checkpoint_every or max(1, self.max_iters // 20)
        # how it is scored changes nothing that is trained
        trained = {
            name: part for name, part in config.to_dict().items() if not name.startswith("val_")
        }
        facts = [trained, context.seed, context.backbone.identity(), context.data.fingerprint]
        self.key = content_key([*facts, leave_out] if leave_out else facts)
        self.iteration = self.resumed_at = 0
        self.seconds = self.earlier_seconds = self.step_flops = 0.0
        self.eval_seconds = self.eval_flops = 0.0
        self.metrics, self.cost, self.notes = dict[str, float](), dict[str, float](), list[str]()
        self.train_dataset: Any = None
        self.val_dataset: Any = None
        self.error: Exception | None = None
        self._recent: list[tuple[int, float, Mapping[str, Tensor]]] = []  # iteration, rate, losses
        with bridge.isolated_rng(context.seed % 2**32):
            self.model: Any = MODELS.build(config.model)
            self.model.init_weights()
        self.model.to(context.device)
        self.model.data_preprocessor._non_blocking = (
            context.device.type == "cuda"
        )  # from memory that the loader pins
        wrapper = {"type": "OptimWrapper", **config.optim_wrapper}
        if wrapper["type"] == "OptimWrapper":
            wrapper["type"] = "QuietOptimWrapper"
        self.optim_wrapper: OptimWrapper = build_optim_wrapper(self.model, wrapper)
        schedules = config.get("param_scheduler") or []
        self.schedulers = [
            PARAM_SCHEDULERS.build(dict(one), default_args={"optimizer": self.optim_wrapper})
            for one in schedules
        ]
        self.evaluator = Evaluator(config.val_evaluator)
        self._resume()
        self.optim_wrapper.initialize_count_status(self.model, self.iteration, self.max_iters)
        # mmdet's boxes need more digits than bf16 has; mmseg's logits do not, and our losses are in
        # fp32 all the same
        self._autocast = context.device.type in AUTOCAST and config.get("default_scope") == "mmseg"

    @property
    def trains(self) -> bool:
        """Whether iterations are left to it."""
        return self.error is None and self.iteration < self.max_iters

    def step(self, data: Mapping[str, Any]) -> None:
        """One training step on a batch that is prepared. May be behind on noticing a loss that is
        not finite (see ``settle``)."""
        seed_iteration(self.context.seed, self.iteration)
        rate = float(self.optim_wrapper.get_lr()["lr"][0])
        with self._precision(), self.optim_wrapper.optim_context(self.model):
            losses = self.model._run_forward(data, mode="loss")
        total, values = self.model.parse_losses(losses)
        self.optim_wrapper.update_params(total)
        for scheduler in self.schedulers:
            scheduler.step()
        self.iteration += 1
        self._recent.append((self.iteration, rate, values))

    def score(self, data: Mapping[str, Any]) -> None:
        """Predict a batch that is prepared, and hand the predictions to the evaluator."""
        with self._precision():
            predictions = self.model._run_forward(data, mode="predict")
        self.evaluator.process(data_samples=predictions, data_batch=data)

    def costs(self) -> dict[str, float]:
        """See ``cost``, without encoding."""
        spent, scored = self.seconds - self.earlier_seconds, len(self.val_dataset)
        train, images = (
            self.step_flops * self.max_iters,
            self.config.train_dataloader.batch_size * self.max_iters,
        )
        return {
            "train_seconds": self.seconds,
            "eval_seconds": self.eval_seconds,
            "train_images_per_second": images * (1 - self.resumed_at / self.max_iters) / spent
            if spent
            else 0.0,
            "eval_images_per_second": scored / self.eval_seconds,
            "train_flops": train,
            "eval_flops": self.eval_flops,
            "flops": train + self.eval_flops,
        }

    def settle(self) -> None:
        """After a step and its costs: what is due of curves and state.

        Raises:
            NonFiniteLoss: names the first iteration whose losses were not finite, and the losses.
        """
        done = self.iteration
        if done % self.every and done < self.max_iters:
            if len(self._recent) >= LOOK:
                self._look()
            return
        self._look()
        self._save()

    def _look(self) -> None:
        """Read the losses since the last look, and write those that curves show: here alone the
        device is waited for."""
        names, every = list(self._recent[-1][2]), max(1, self.max_iters // 500)
        rows = torch.stack(
            [
                torch.stack([losses[name].detach().float() for name in names])
                for *_, losses in self._recent
            ]
        )
        for (iteration, rate, _), row in zip(self._recent, rows.tolist(), strict=True):
            losses = dict(zip(names, row, strict=True))
            if broken := [
                name
                for name, value in losses.items()
                if "loss" in name and not math.isfinite(value)
            ]:
                raise NonFiniteLoss(
                    f"the loss is not finite at iteration {iteration} ({', '.join(broken)}); "
                    f"try a lower learning rate (--set lr=…) or precision=fp32"
                )
            if iteration % every == 0 or iteration in (1, self.max_iters):
                curves = {**losses, "lr": rate}
                self.context.log.log_metrics(
                    {f"train/{name}": value for name, value in curves.items()}, iteration
                )
                told = "  ".join(f"{name}: {value:.4g}" for name, value in curves.items())
                print_log(f"Iter(train) [{iteration}/{self.max_iters}]  {told}", "current")
        self._recent.clear()

    def _precision(self) -> Any:
        return (
            torch.autocast(self.context.device.type, torch.bfloat16)
            if self._autocast
            else nullcontext()
        )

    def _resume(self) -> None:
        path = Path(self.context.work_dir, STATE)
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file makes torch and zip raise
            print_log(f"{path} cannot be read ({error}): starting anew", "current", logging.WARNING)
            return
        if state["key"] != self.key:
            print_log(
                f"{path} belongs to another run ({state['key']}, not {self.key}): starting anew",
                "current",
                logging.WARNING,
            )
            return
        self.model.load_state_dict(state["model"])
        self.optim_wrapper.load_state_dict(state["optimizer"])
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.iteration = self.resumed_at = state["iteration"]
        self.seconds = self.earlier_seconds = state["seconds"]
        self.step_flops = state["step_flops"]
        print_log(f"resumed at iteration {self.iteration} of {self.max_iters}", "current")

    def _save(self) -> None:
        state = {
            "key": self.key,
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "optimizer": self.optim_wrapper.state_dict(),
            "schedulers": [_plain(scheduler.state_dict()) for scheduler in self.schedulers],
            "seconds": self.seconds,
            "step_flops": self.step_flops,
        }
        with atomic_write(Path(self.context.work_dir, STATE)) as temporary:
            torch.save(state, temporary)


@contextmanager
def leaves(member: Member) -> Iterator[None]:
    """A member that breaks in the block leaves its group: the others go on."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        member.error = error


@OPTIM_WRAPPERS.register_module()
class QuietOptimWrapper(OptimWrapper):
    """mmengine's, which notes the norm of the gradients of each step where it clips them, and waits
    for the device to know it."""

    def _clip_grad(self) -> None:
        given = [
            one
            for group in self.optimizer.param_groups
            for one in group["params"]
            if one.grad is not None
        ]
        if given:
            self.clip_func(given, **self.clip_grad_kwargs)


def _plain(value: Any) -> Any:
    """numpy scalars to python's, so that ``weights_only=True`` can read them."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
