"""Settings of all MMEngine probes: one table of name, type, default and place in the config; and
the schedule that follows from them, with the curves of published protocols.

Importing this imports neither torch nor MMEngine.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, NonNegativeFloat, PositiveFloat, PositiveInt

from cliptex_common.errors import UserError
from cliptex_common.settings import (
    Axis,
    Fraction,
    PositiveShare,
    Precision,
    Probability,
    Share,
    settings_dataclass,
)


def _read_tier(value: Any) -> str:
    if not re.fullmatch(r"frozen|all|(blocks|lora):[1-9]\d*", text := str(value)):
        raise ValueError("must be frozen, all, blocks:N or lora:R, such as blocks:4")
    return text


Tier = Annotated[str, BeforeValidator(_read_tier), Axis("tune")]
# to choose from where ``tune_rates`` names none
TUNE_RATES = {
    "all": (3e-5, 1e-4, 3e-4),
    "blocks": (3e-5, 1e-4, 3e-4),
    "lora": (3e-4, 1e-3, 3e-3),
}


@settings_dataclass
class TuneSettings:
    """What of the backbone is trained, beside the head.

    Attributes:
        tune: the tier: ``frozen``; ``all`` weights; those of the last N ``blocks:N`` (stages of a
            CNN) and of what follows them; or ``lora:R``, matrices of rank R that are added to the
            projections of attention (of a CNN to its 1×1 convolutions). See ``backbones.tuning``.
        tune_rates: learning rates of the backbone to choose from on held-out training images;
            none for three that fit the tier.
        layer_decay: of ``all``: the factor of the rate from a block to the one before.
        drop_path: highest rate of drop path in blocks that train, where the architecture has it.
        checkpointing: activations of blocks are computed again in the backward pass, which takes
            less memory and more time.
        accumulate: a batch is taken in so many parts, whose gradients are added up; on several
            GPUs (``--jobs 1``, or a job of SLURM with ``gpus``) at the same time.
        ema: decay of a moving average of all weights that train, such as 0.9999, which is scored
            and stored in their place; 0 for none.
    """

    tune: Tier = "frozen"
    tune_rates: tuple[PositiveFloat, ...] = ()
    layer_decay: PositiveShare = 0.75
    drop_path: Share = 0.1
    checkpointing: bool = False
    accumulate: PositiveInt = 1
    ema: Share = 0.0

    @property
    def is_tuned(self) -> bool:
        return self.tune != "frozen"

    @property
    def has_frozen_part(self) -> bool:
        """Whether features of a part of the backbone that does not train can be cached."""
        return self.tune.partition(":")[0] in ("frozen", "blocks")

    @property
    def memory_advice(self) -> str:
        """What fits where the memory of a device ends."""
        if not self.is_tuned:
            return "lower batch_size or size (--set batch_size=…), or run the task alone"
        advice = f"take the batch in parts (--set accumulate={2 * self.accumulate})"
        if not self.checkpointing:
            advice += ", set checkpointing=true"
        if self.tune == "all":
            advice += ", train less (tune=blocks:2)"
        return f"{advice}, or lower batch_size or size"

    @property
    def backbone_rates(self) -> tuple[float, ...]:
        """The learning rates of the backbone to choose from; none of the frozen tier."""
        default = TUNE_RATES.get(self.tune.partition(":")[0], ())
        return (self.tune_rates or default) if self.is_tuned else ()


Schedule = Literal[  # after the first three the keys of ``RATES``
    "poly", "cosine", "steps", "dinov3-segmentation", "dinov3-depth", "pixio", "probe3d"
]

OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD"}


class At:
    """Where a setting stands in the config of its probe: part of its field's annotation, beside its
    type and default. What a config file states there is the setting's default.

    Attributes:
        literals: paths of the value; a step into a list is the ``type`` of a part.
        added: the value is added where a file states none; otherwise it changes nothing there.
        part: path of what is made of it and of others, unless a config file states that: then the
            setting cannot change it.
        absent: the setting's value where the file lacks the literal.
    """

    def __init__(
        self, *literals: str, added: bool = False, part: str = "", absent: Any = None
    ) -> None:
        self.literals, self.added, self.part, self.absent = literals, added, part, absent


SCHEDULE = At(part="param_scheduler")


def places(settings_type: type) -> dict[str, At]:
    """Setting → where it stands, of those of a settings dataclass that stand in the config."""
    return {
        name: part
        for base in reversed(settings_type.__mro__)
        for name, hint in typing.get_type_hints(base, include_extras=True).items()
        for part in getattr(hint, "__metadata__", ())
        if isinstance(part, At)
    }


@settings_dataclass
class TrainingSettings(TuneSettings):
    """The training of an MMEngine probe; every field is part of the task's identity.

    Attributes:
        protocol: the published protocol that the settings come from, or ``own``; see
            ``probes.protocols``.
        max_iters: length of training in batches.
        batch_size: images of a batch.
        optimizer: ``adamw`` or ``sgd`` (momentum 0.9).
        lr: learning rate of the optimizer.
        weight_decay: of the optimizer.
        betas: of AdamW.
        decay_all: norms and biases decay too.
        clip_norm: the gradient's norm is clipped to this; 0 for never.
        schedule: ``poly`` or ``cosine`` from ``lr`` to ``min_lr`` after the warm-up;
            ``steps``, a tenth of the rate before at each of ``steps``, shares of the training; or
            one of a published source, which has its own warm-up and, of ``dinov3-depth``, beta 1;
            see ``probes.settings``.
        steps: shares of the training, see ``schedule``.
        power: of ``poly``.
        min_lr: what ``poly`` and ``cosine`` end at.
        warmup: share of the training over which the learning rate grows linearly; from 1 on a
            number of iterations.
        warmup_start: share of ``lr`` that the warm-up starts at.
        shuffle: each pass over the training images has an order of its own; otherwise all have
            that of the dataset.
        flip: probability of a horizontal flip in training (the x of normals changes sign with it).
        precision: of the frozen backbone: ``fp32``, ``bf16``, or ``auto``, which a plan replaces by
            one of them.
        cache: the precision that the maps of a frozen backbone are cached in, or ``none``; see the
            probes.
    """

    protocol: str = "own"
    max_iters: Annotated[
        PositiveInt, Axis(), At("train_cfg.max_iters", added=True, part="param_scheduler")
    ] = 40_000
    batch_size: Annotated[PositiveInt, At("train_dataloader.batch_size", added=True)] = 16
    optimizer: Annotated[Literal["adamw", "sgd"], At(part="optim_wrapper.optimizer.type")] = "adamw"
    lr: Annotated[PositiveFloat, Axis(), At("optim_wrapper.optimizer.lr", added=True)] = 1e-3
    weight_decay: Annotated[
        NonNegativeFloat, At("optim_wrapper.optimizer.weight_decay", added=True)
    ] = 1e-4
    betas: Annotated[tuple[Share, Share], At("optim_wrapper.optimizer.betas")] = (0.9, 0.999)
    decay_all: Annotated[bool, At(part="optim_wrapper.paramwise_cfg")] = True
    clip_norm: Annotated[
        NonNegativeFloat,
        At("optim_wrapper.clip_grad.max_norm", part="optim_wrapper.clip_grad", absent=0.0),
    ] = 0.0
    schedule: Annotated[Schedule, SCHEDULE] = "poly"
    steps: Annotated[tuple[Fraction, ...], SCHEDULE] = (8 / 12, 11 / 12)
    power: Annotated[PositiveFloat, SCHEDULE] = 0.9
    min_lr: Annotated[NonNegativeFloat, SCHEDULE] = 0.0
    warmup: Annotated[NonNegativeFloat, SCHEDULE] = 0.05
    warmup_start: Annotated[Fraction, SCHEDULE] = 1e-3
    shuffle: bool = True
    flip: Annotated[
        Probability, At("train_dataloader.dataset.pipeline.RandomFlip.prob", absent=0.0)
    ] = 0.5
    precision: Annotated[
        Precision, At("model.backbone.precision", "model.backbone.backbone.precision")
    ] = "fp32"
    cache: Literal["none", "fp16", "bf16", "fp32"] = "none"

    def __post_init__(self) -> None:
        if self.warmup > 1 and not self.warmup.is_integer():
            raise UserError(
                f"warmup={self.warmup:g}: must be a share below 1, or a whole number of iterations"
            )


def scheduler_configs(settings: TrainingSettings) -> list[dict[str, Any]]:
    """Configs of warm-up and decay, by iteration.

    Raises:
        UserError: the warm-up is as long as the training.
    """
    end = settings.max_iters
    warm = round(settings.warmup * (end if settings.warmup < 1 else 1))
    if warm >= max(end, 2):
        raise UserError(
            f"warmup={settings.warmup:g} leaves nothing of max_iters={end}; set warmup to a share"
            " below 1"
        )
    warm = warm if warm >= 2 else 0  # mmengine's LinearLR divides by its length less one
    decay = {"eta_min": settings.min_lr, "begin": warm}
    parts: list[dict[str, Any]]
    if settings.schedule in RATES:
        tables = {"CurveLR": RATES, "CurveMomentum": BETAS}
        kinds = [kind for kind, curves in tables.items() if settings.schedule in curves]
        parts = [{"type": kind, "curve": settings.schedule, "warm": warm} for kind in kinds]
    elif settings.schedule == "poly":
        parts = [{"type": "PolyLR", "power": settings.power, **decay}]
    elif settings.schedule == "cosine":
        parts = [{"type": "CosineAnnealingLR", "T_max": end - warm, **decay}]
    else:
        milestones = [round(step * end) for step in settings.steps]
        parts = [{"type": "MultiStepLR", "milestones": milestones, "gamma": 0.1}]
    if warm and settings.schedule not in RATES:
        start = settings.warmup_start
        parts.insert(0, {"type": "LinearLR", "start_factor": start, "begin": 0, "end": warm})
    return [{"by_epoch": False, "begin": 0, "end": end, **part} for part in parts]


# (iteration, iterations of warm-up, iterations of training) → share of the highest rate, or beta 1
Curve = Callable[[int, int, int], float]


def _cosine(share: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return (1 + math.cos(math.pi * share)) / 2


def dinov3_segmentation(iteration: int, warm: int, end: int) -> float:
    step = max(iteration - 1, 0)  # it does not step after the first iteration
    if step < warm:
        return (1e-6 + (1 - 1e-6) * step / warm) * (1 - step / end)
    return _cosine((step + 1) / end)


def dinov3_depth(iteration: int, warm: int, end: int) -> float:
    if iteration < warm:
        return 1e-3 + _cosine(iteration / end) * iteration / warm
    floor = 1 / 25_000
    return floor + (1 - floor) * _cosine((iteration + 1) / end)


def pixio(iteration: int, warm: int, end: int) -> float:
    step = iteration - 1  # the rate is set after an iteration, from its number
    if step < 0:
        return 1.0
    return step / warm if step < warm else (1 - (step - warm) / (end - warm)) ** 0.9


def probe3d(iteration: int, warm: int, end: int) -> float:
    if iteration < warm:
        share = iteration / warm
    else:
        share = math.cos(math.pi / 2 * (iteration - warm) / (end - warm))
    return 0.99 * share + 0.01


def dinov3_depth_beta(iteration: int, warm: int, end: int) -> float:
    if iteration < warm:
        return 0.0
    return 0.95 - 0.1 * _cosine((iteration - warm) / (end - warm))


RATES: dict[str, Curve] = {
    "dinov3-segmentation": dinov3_segmentation,
    "dinov3-depth": dinov3_depth,
    "pixio": pixio,
    "probe3d": probe3d,
}
BETAS: dict[str, Curve] = {"dinov3-depth": dinov3_depth_beta}
