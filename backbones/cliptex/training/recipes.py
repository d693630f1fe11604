"""Training recipes: how weights are made. ``clip``, ``clip-ft`` and ``cliptex`` are one recipe with
other settings."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, field, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from backbones.cliptex.tasks import PAPER, find_task, ordered, task_names
from common.errors import UserError, nearest
from common.files import content_key, read_json, read_text
from common.settings import (
    Probability,
    Share,
    field_names,
    parse_pairs,
    read_value,
    settings_dataclass,
    with_changes,
)

VERSION = 2  # raised whenever the same recipe would give other weights; 1 resampled images twice
WITHOUT_EFFECT = ("compile", "grad_checkpointing")  # on the weights
LAMBDAS = {"clip": 1.0, "seg": 0.1, "depth": 1.0, "normal": 1.0}  # the paper's
Scale = Annotated[float, Field(gt=0, le=1)]
LAMBDA = "lambda_"  # λ of a loss is the setting lambda_LOSS


@settings_dataclass
class Recipe:
    """All that decides a training, but its inputs (initial weights, pairs, labels).

    The defaults are those of ``cliptex`` at the paper's size: L = λ_clip L_clip + Σ_task λ_task
    L_task with λ = 1, but λ_seg = 0.1, for 30 epochs. What the paper leaves open (learning rate,
    batch …) is ours.

    Attributes:
        name: of the recipe; part of what the weights are called, not of the computation.
        model: with ``--init random``, what to build: ``mini``, ``tiny``, an open_clip architecture,
            or a JSON file with an open_clip model config.
        lambdas: weights of the losses, ≥ 0, of ``clip`` and each task; the settings
            ``lambda_clip``, ``lambda_seg`` … of command lines, files and sweeps. 1 where none is
            said.
        experts: tasks whose labels are used (see ``tasks``; those of other packages too); the λ of
            the others counts as 0.
        epochs: passes over the pairs; may be a fraction.
        batch_size: pairs in a step, over all processes and micro-batches together.
        accumulate: micro-batches in a step (each process); less memory, same result, one more
            forward pass. Models with batch norms see each micro-batch (and each process its share)
            by itself, so there it is not quite the same.
        lr, warmup, weight_decay, beta1, beta2, grad_clip: AdamW at this peak learning rate, reached
            after the share ``warmup`` of all steps, then a cosine to 0; no decay on norms, biases,
            position embeddings and logit scale; ``grad_clip`` is the largest norm of the whole
            gradient (0: no limit).
        head_lr: the heads' learning rate, as a multiple of ``lr``: they start from nothing.
        ema: decay of the moving average that is validated and exported (0: none, the last weights
            are exported).
        precision: ``fp32``, or ``bf16`` autocast (weights, losses and optimizer stay float32);
            ``auto`` is bf16 on CUDA.
        compile: through ``torch.compile``; grad_checkpointing: activations are computed again in
            the backward pass, which saves memory. Neither changes the weights beyond rounding.
        image_size: square input in pixels; 0 keeps the model's own.
        crop_scale: range of the crop's area as a share of the largest square; flip: probability;
            rotate: ± degrees.
        label_size: side of the maps that the dense losses compare; 0 takes four pixels for each
            patch.
        head_width: channels in the heads; 0 takes half of what the image tower has, at most 256.
        val_pairs: pairs held out (the same for every recipe of one seed) to measure retrieval after
            each epoch.
        seed: of everything random.
    """

    name: str = "cliptex"
    model: str = "mini"
    lambdas: Mapping[str, NonNegativeFloat] = field(
        default_factory=lambda: dict(LAMBDAS), hash=False
    )
    experts: tuple[str, ...] = PAPER
    epochs: PositiveFloat = 30.0
    batch_size: Annotated[int, Field(ge=2)] = 1024  # a contrast needs a second pair
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
    compile: bool = False
    grad_checkpointing: bool = False
    image_size: NonNegativeInt = 0
    crop_scale: tuple[Scale, Scale] = (0.9, 1.0)
    flip: Probability = 0.5
    rotate: NonNegativeFloat = 0.0
    label_size: NonNegativeInt = 0
    head_width: NonNegativeInt = 0
    val_pairs: NonNegativeInt = 0
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        for task in {*self.experts, *self.lambdas} - {"clip", *PAPER}:
            find_task(task)
        problem = ""
        if "clip" in self.experts:
            problem = "clip is no task of an expert"
        elif not self.weight("clip") and not self.tasks:
            problem = "every lambda is 0, so there is nothing to learn; set one above 0"
        elif self.batch_size % self.accumulate:
            problem = f"batch_size {self.batch_size} is no multiple of accumulate {self.accumulate}"
        elif self.crop_scale[0] > self.crop_scale[1]:
            problem = "crop_scale must be low,high with 0 < low <= high <= 1"
        if problem:
            raise UserError(f"recipe {self.name!r}: {problem}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks whose loss counts, in the order of ``tasks.ordered``."""
        return ordered(task for task in self.experts if self.weight(task) > 0)

    def weight(self, loss: str) -> float:
        """λ of ``clip`` or a task."""
        return float(self.lambdas.get(loss, 1.0))

    def settings(self) -> dict[str, Any]:
        """All settings by the names that users know: every λ is one of its own."""
        plain = asdict(self)
        del plain["lambdas"]
        losses = ("clip", *ordered({*PAPER, *self.experts, *self.lambdas} - {"clip"}))
        return {
            "name": plain.pop("name"),
            **{LAMBDA + loss: self.weight(loss) for loss in losses},
            **plain,
        }

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with other settings, by the names of ``settings``; text is read as the setting's
        own type. Raises ``UserError`` for an unknown setting (names the nearest) or a value that
        does not fit."""
        known = setting_names()
        if unknown := [name for name in changes if name not in known]:
            raise UserError(f"no setting {unknown[0]!r}; {nearest(unknown[0], known)}")
        lambdas = {
            name.removeprefix(LAMBDA): read_value(name, value, NonNegativeFloat)
            for name, value in changes.items()
            if name.startswith(LAMBDA)
        }
        others = {name: value for name, value in changes.items() if not name.startswith(LAMBDA)}
        return with_changes(replace(self, lambdas={**self.lambdas, **lambdas}), others)

    def identity(self) -> dict[str, Any]:
        """The settings that decide the weights: two recipes that train the same thing have one
        identity."""
        without = {"name", "experts", "lambdas", *WITHOUT_EFFECT}
        if not self.tasks:
            without |= {"head_lr", "head_width", "label_size"}
        settings = {name: value for name, value in asdict(self).items() if name not in without}
        return {
            "version": VERSION,
            "lambdas": {loss: self.weight(loss) for loss in ("clip", *self.tasks)},
            **settings,
        }

    def key(self, init: str, pairs: str, labels: str) -> str:
        """Identity of the weights that this recipe makes of these inputs (digests); the name does
        not count."""
        inputs = {"init": init, "pairs": pairs, "labels": labels if self.tasks else ""}
        return content_key({"recipe": self.identity(), **inputs}, 32)


def setting_names() -> set[str]:
    """Names of all settings of a recipe, as users know them."""
    return {*field_names(Recipe), *(LAMBDA + loss for loss in ("clip", *task_names()))} - {
        "lambdas"
    }


NO_TASKS = {"clip": 1.0, **dict.fromkeys(PAPER, 0.0)}
RECIPES: dict[str, Recipe] = {
    "clip": Recipe(name="clip", lr=5e-4, weight_decay=0.2, lambdas=NO_TASKS),
    "clip-ft": Recipe(name="clip-ft", lambdas=NO_TASKS),
    "cliptex": Recipe(name="cliptex"),
}


def subsets(tasks: Iterable[str] | None = None) -> dict[str, tuple[str, ...]]:
    """The ablation over experts, name → tasks: each alone, each pair, … all of ``tasks`` (of all
    that are known). ``cliptex`` is the name of the paper's, so that its weights are one thing."""
    known = ordered(task_names() if tasks is None else tasks)
    found = [chosen for count in range(1, len(known) + 1) for chosen in combinations(known, count)]
    return {
        "cliptex" if chosen == PAPER else f"cliptex-{'-'.join(chosen)}": chosen for chosen in found
    }


def recipe_names() -> list[str]:
    """Names that ``find_recipe`` knows: those of ``RECIPES``, and of the ablation."""
    return list(dict.fromkeys([*RECIPES, *subsets()]))


def find_recipe(name: str, changes: Iterable[str] = ()) -> Recipe:
    """A recipe by name or from a file, with ``--set`` changes.

    Args:
        name: ``clip``, ``clip-ft``, ``cliptex``, one of ``subsets`` (``cliptex-seg`` …), or a
            ``.json`` / ``.toml`` file with settings and, as ``recipe``, the name of the recipe they
            change (``cliptex`` when not said).
        changes: ``key=value`` strings.

    Raises:
        UserError: no such recipe or file, an unknown setting (names the nearest), or a value that
            does not fit.
    """
    known = subsets()
    if name in RECIPES:
        recipe = RECIPES[name]
    elif name in known:
        recipe = replace(RECIPES["cliptex"], name=name, experts=known[name])
    elif name.endswith((".json", ".toml")):
        recipe = read_recipe(Path(name))
    else:
        raise UserError(
            f"no recipe {name!r}; {nearest(name, recipe_names())}, or a .json or .toml file"
        )
    return recipe.changed(parse_pairs(changes))


def read_recipe(path: Path) -> Recipe:
    """A recipe from a JSON or TOML file, as ``find_recipe`` describes it."""
    try:
        settings = tomllib.loads(read_text(path)) if path.suffix == ".toml" else read_json(path)
    except OSError as error:
        raise UserError(f"cannot read recipe {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"recipe {path} is not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(settings, Mapping):
        raise UserError(f"recipe {path} must be a table of settings, such as lambda_seg = 0.1")
    settings = dict(settings)
    base = str(settings.pop("recipe", "cliptex"))
    if base not in RECIPES:
        raise UserError(
            f"recipe {path} builds on {base!r}, which does not exist; {nearest(base, RECIPES)}"
        )
    # through text, so that a file's values are checked exactly as those of --set
    plain = {
        key: ",".join(map(str, value))
        if isinstance(value, list)
        else "none"
        if value is None
        else str(value)
        for key, value in settings.items()
    }
    try:
        return RECIPES[base].changed({"name": path.stem, **plain})
    except UserError as error:
        raise UserError(f"recipe {path}: {error}") from error
