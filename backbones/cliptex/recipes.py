"""Training recipes: ``clip``, ``clip-ft`` and ``cliptex`` are one, with different settings."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from backbones.cliptex.tasks import PAPER, find_task, ordered, origins, task_names
from cliptex_common.errors import UserError, suggest
from cliptex_common.files import content_key, parse_file
from cliptex_common.registry import Registry
from cliptex_common.settings import (
    Probability,
    Share,
    ShareRange,
    as_text,
    field_names,
    parse_pairs,
    read_value,
    settings_dataclass,
    with_changes,
)

if TYPE_CHECKING:
    from cliptex_common.device import Device

RECIPE_VERSION = 4  # raised whenever the same recipe would give other weights
PAPER_LAMBDAS = {"clip": 1.0, "seg": 0.1, "depth": 1.0, "normal": 1.0}
LAMBDA_PREFIX = "lambda_"  # λ of a loss is the setting lambda_LOSS

# share of the steps that are done, in [0, 1) → factor on a loss's λ
Schedule = Callable[[float], float]
SCHEDULES: Registry[Schedule] = Registry("schedule of a λ", "schedules")
SCHEDULES.register("rise", lambda done: done)
SCHEDULES.register("fall", lambda done: 1 - done)
SCHEDULES.register("cosine", lambda done: 0.5 * (1 + math.cos(math.pi * done)))
OPTIONAL = ("schedules", "layers")  # not part of a recipe that leaves them empty


@settings_dataclass
class Recipe:
    """Everything that decides a training except its inputs (initial weights, pairs, labels).

    The defaults are those of ``cliptex`` at the paper's size: L = λ_clip L_clip + Σ_task λ_task
    L_task with λ = 1, but λ_seg = 0.1, for 30 epochs. What the paper leaves open (learning rate,
    batch …) is our choice.

    Attributes:
        name: of the recipe; part of the weights' name, not of the computation.
        model: with ``--init random``, what to build: ``mini``, ``tiny``, an open_clip architecture,
            or a JSON file with an open_clip model config.
        lambdas: weights of the losses of ``clip`` and each task, 1 where not given; the settings
            ``lambda_clip``, ``lambda_seg`` … of command lines, files and sweeps.
        schedules: ``LOSS:SCHEDULE``, the λ that change in training: with ``seg:rise``, λ_seg is
            multiplied at each step by ``SCHEDULES["rise"]`` of the share of steps done.
        experts: tasks whose labels are used (see ``tasks``; plug-ins' too); the λ of the others
            counts as 0.
        epochs: passes over the pairs; may be a fraction.
        batch_size: pairs in a step, over all processes and micro-batches together.
        accumulate: micro-batches in a step (each process); less memory, same result, one more
            forward pass. Batch norms see each micro-batch (and each process its share) by itself,
            so models with them do not get quite the same result.
        lr: AdamW's peak learning rate, reached after ``warmup``; then a cosine to 0.
        warmup: share of all steps over which the learning rate grows linearly.
        weight_decay: of AdamW; none on norms, biases, position embeddings and logit scale.
        beta1, beta2: AdamW's.
        grad_clip: largest norm of the complete gradient; 0 for no limit.
        head_lr: the heads' learning rate, as a multiple of ``lr``: they start from random weights.
        ema: decay of the moving average that is validated and exported (0: none, the last weights
            are exported).
        precision: ``fp32``, or ``bf16`` autocast (weights, losses and optimizer stay float32);
            ``auto`` is ``bf16`` on accelerators that have it and ``fp32`` elsewhere, and has that
            one's identity.
        grad_checkpointing: compute activations again in the backward pass, to save memory.
        image_size: square input in pixels; 0 keeps the model's own.
        crop_scale: range of the crop's area as a share of the largest square.
        flip: probability.
        layers: whose maps the heads read, from 1, shallow to deep; by default the tower's own
            (``default_layers``: evenly spaced blocks).
        label_size: side of the maps that the dense losses compare; 0 takes four pixels for each
            patch.
        head_width: channels in the heads; 0 takes half of the image tower's, at most 256.
        val_pairs: pairs held out (the same for every recipe of one seed) to measure retrieval after
            each epoch.
        seed: of everything random.
    """

    name: str = "cliptex"
    model: str = "mini"
    lambdas: Mapping[str, NonNegativeFloat] = field(
        default_factory=lambda: dict(PAPER_LAMBDAS), hash=False
    )
    schedules: tuple[str, ...] = ()
    experts: tuple[str, ...] = PAPER
    epochs: PositiveFloat = 30.0
    batch_size: Annotated[int, Field(ge=2)] = 1024
    accumulate: PositiveInt = 1
    lr: PositiveFloat = 1e-5
    head_lr: PositiveFloat = 10.0
    warmup: Share = 0.05
    weight_decay: NonNegativeFloat = 0.1
    beta1: Share = 0.9
    beta2: Share = 0.98
    grad_clip: NonNegativeFloat = 1.0
    ema: Share = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    grad_checkpointing: bool = False
    image_size: NonNegativeInt = 0
    crop_scale: ShareRange = (0.9, 1.0)
    flip: Probability = 0.5
    layers: tuple[PositiveInt, ...] = ()
    label_size: NonNegativeInt = 0
    head_width: NonNegativeInt = 0
    val_pairs: NonNegativeInt = 0
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        for task in {*self.experts, *(self.lambdas.keys() - {"clip"})} - {*PAPER}:
            find_task(task)
        if unknown := self._schedules.keys() - self.loss_weights.keys():
            names = suggest(min(unknown), self.loss_weights)
            raise UserError(f"schedules={','.join(self.schedules)}: write LOSS:SCHEDULE; {names}")
        for schedule in self._schedules.values():
            SCHEDULES.find(schedule)
        if not any(self.loss_weights.values()):
            raise UserError("every lambda is 0, so there is nothing to learn; set one above 0")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}"
            )

    @property
    def loss_weights(self) -> dict[str, float]:
        """λ of each loss that counts: of ``clip``, then of tasks in the order of
        ``tasks.ordered``."""
        lambdas = {"clip": 1.0, **dict.fromkeys(ordered(self.experts), 1.0)}
        lambdas |= {name: self.lambdas[name] for name in lambdas if name in self.lambdas}
        return {name: float(x) for name, x in lambdas.items() if x > 0 or name == "clip"}

    def loss_weights_at(self, fraction_done: float) -> dict[str, float]:
        """``loss_weights`` when this share of the steps is done, each λ times its schedule."""
        schedules = self._schedules.items()
        factors = {loss: SCHEDULES.find(name)(fraction_done) for loss, name in schedules}
        return {loss: x * factors.get(loss, 1.0) for loss, x in self.loss_weights.items()}

    @property
    def _schedules(self) -> dict[str, str]:
        """Loss → name of the schedule of its λ."""
        return {loss: name for loss, _, name in (each.partition(":") for each in self.schedules)}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks whose loss counts."""
        return tuple(name for name in self.loss_weights if name != "clip")

    def settings(self) -> dict[str, Any]:
        """All settings by the names that users know: every λ is a setting."""
        settings = self._stated()
        del settings["lambdas"]
        losses = ("clip", *ordered({*PAPER, *self.experts, *self.lambdas} - {"clip"}))
        return {
            "name": settings.pop("name"),
            **{LAMBDA_PREFIX + loss: float(self.lambdas.get(loss, 1.0)) for loss in losses},
            **settings,
        }

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with other settings, by the names of ``settings``; text is read by type.

        Raises:
            UserError: an unknown setting (suggests the nearest), or a value that is not allowed.
        """
        names = setting_names()
        if unknown := [name for name in changes if name not in names]:
            raise UserError(f"no setting {unknown[0]!r}; {suggest(unknown[0], names)}")
        lambdas = {
            name.removeprefix(LAMBDA_PREFIX): read_value(name, value, NonNegativeFloat)
            for name, value in changes.items()
            if name.startswith(LAMBDA_PREFIX)
        }
        rest = {
            name: value for name, value in changes.items() if not name.startswith(LAMBDA_PREFIX)
        }
        return with_changes(self, {**rest, "lambdas": lambdas})

    def with_precision(self, device: Device) -> Recipe:
        """The recipe with the precision that ``auto`` means on ``device``."""
        from cliptex_common.device import (
            prefers_bf16,
        )  # with torch, which listing recipes does not need

        if self.precision != "auto":
            return self
        return replace(self, precision="bf16" if prefers_bf16(device) else "fp32")

    def identity(self) -> dict[str, Any]:
        """The settings that decide the weights: recipes that train the same thing have the same."""
        excluded = {"name", "experts", "lambdas", "grad_checkpointing"}
        if not self.tasks:
            excluded |= {"head_lr", "head_width", "label_size", "layers"}
        settings = {name: value for name, value in self._stated().items() if name not in excluded}
        plugins = {name: SCHEDULES.origin(name) for name in self._schedules.values()}
        if any(plugins.values()):
            settings["schedule_plugins"] = plugins
        return {
            "version": RECIPE_VERSION,
            "lambdas": self.loss_weights,
            **settings,
            **origins(self.tasks),
        }

    def _stated(self) -> dict[str, Any]:
        """All fields but optional ones that are empty."""
        fields = asdict(self)
        return {name: fields[name] for name in fields if fields[name] or name not in OPTIONAL}

    def key(self, init: str, pairs: str, labels: str) -> str:
        """Identity of the weights that this recipe makes of these inputs (digests)."""
        inputs = {"init": init, "pairs": pairs, "labels": labels if self.tasks else ""}
        return content_key({"recipe": self.identity(), **inputs}, 32)


def setting_names() -> set[str]:
    """Names of all settings of a recipe, as users know them."""
    lambdas = {LAMBDA_PREFIX + loss for loss in ("clip", *task_names())}
    return field_names(Recipe) - {"lambdas"} | lambdas


def changed_settings(settings: Mapping[str, Any]) -> str:
    """What ``Recipe.settings`` of trained weights change in the recipe of their name, in one line,
    λ first: ``λ_seg=0.3 epochs=2``. Seeds and precision are not what a recipe is called by."""
    name = settings["name"]
    defaults = (find_recipe(name) if name in recipe_names() else Recipe()).settings()
    texts = {key: as_text(key, value) for key, value in settings.items()}
    words = [
        f"{key.replace(LAMBDA_PREFIX, 'λ_')}={text.replace(',', '+')}"
        for key, text in texts.items()
        if key not in ("name", "seed", "precision") and text != as_text(key, defaults.get(key))
    ]
    return " ".join(words)


CONTRAST_ALONE = {"clip": 1.0, **dict.fromkeys(PAPER, 0.0)}  # λ
RECIPES: dict[str, Recipe] = {
    "clip": Recipe(name="clip", lr=5e-4, weight_decay=0.2, lambdas=CONTRAST_ALONE),
    "clip-ft": Recipe(name="clip-ft", lambdas=CONTRAST_ALONE),
    "cliptex": Recipe(name="cliptex"),
}


def subsets(tasks: Iterable[str] | None = None) -> dict[str, tuple[str, ...]]:
    """The ablation over experts: name → each non-empty subset of ``tasks`` (default: all tasks).

    The paper's own is called ``cliptex``, so that its weights have one name.
    """
    tasks = ordered(task_names() if tasks is None else tasks)
    chosen = [subset for count in range(1, len(tasks) + 1) for subset in combinations(tasks, count)]
    return {
        "cliptex" if subset == PAPER else f"cliptex-{'-'.join(subset)}": subset for subset in chosen
    }


def trained_experts(recipe: str, changes: str) -> tuple[str, ...]:
    """The experts of weights, by the name of their recipe and its ``changed_settings``."""
    for word in changes.split():
        if word.startswith("experts="):
            return tuple(filter(None, word.removeprefix("experts=").split("+")))
    return subsets().get(recipe, ())


def recipe_names() -> list[str]:
    """Names that ``find_recipe`` accepts: those of ``RECIPES``, and of the ablation."""
    return list(dict.fromkeys([*RECIPES, *subsets()]))


def find_recipe(name: str, changes: Iterable[str] = ()) -> Recipe:
    """A recipe by name or from a file, with ``--set`` changes.

    Args:
        name: ``clip``, ``clip-ft``, ``cliptex``, one of ``subsets`` (``cliptex-seg`` …), or a
            ``.json`` / ``.toml`` file with settings and, as ``recipe``, the name of the recipe they
            change (default ``cliptex``).
        changes: ``key=value`` strings.

    Raises:
        UserError: no such recipe or file, an unknown setting (suggests the nearest), or a value
            that is not allowed.
    """
    ablation = subsets()
    if name in RECIPES:
        recipe = RECIPES[name]
    elif name in ablation:
        recipe = replace(RECIPES["cliptex"], name=name, experts=ablation[name])
    elif name.endswith((".json", ".toml")):
        recipe = read_recipe(Path(name))
    else:
        raise UserError(
            f"no recipe {name!r}; {suggest(name, recipe_names())}, or a .json or .toml file"
        )
    return recipe.changed(parse_pairs(changes))


def read_recipe(path: Path) -> Recipe:
    """A recipe from a JSON or TOML file, as ``find_recipe`` describes it."""
    try:
        settings = parse_file(path, tomllib.loads if path.suffix == ".toml" else json.loads)
    except OSError as error:
        raise UserError(f"cannot read recipe {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"recipe {path} is not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(settings, Mapping):
        raise UserError(f"recipe {path} must be a table of settings, such as lambda_seg = 0.1")
    settings = dict(settings)
    base = settings.pop("recipe", "cliptex")
    if base not in RECIPES:
        raise UserError(f"recipe {path} builds on {base!r}; {suggest(base, RECIPES)}")
    try:
        return RECIPES[base].changed({"name": path.stem, **settings})
    except UserError as error:
        raise UserError(f"recipe {path}: {error}") from error
