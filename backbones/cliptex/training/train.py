"""The training loop that ``clip``, ``clip-ft`` and ``cliptex`` share. It reads top to bottom: ``train`` is the recipe.

L = λ_clip · L_clip + Σ_task λ_task · L_task,    task ∈ {seg, depth, normal, …}
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.base import state_sha256
from backbones.checkpoint import read_checkpoint, save_checkpoint
from backbones.cliptex.cost import count_flops
from backbones.cliptex.data.dataset import Batch, Labels, TrainDataset, count_bad
from backbones.cliptex.data.source import PairSource, Tally
from backbones.cliptex.protocols import Progress, RunLog, Silent
from backbones.cliptex.recipes import Recipe
from backbones.cliptex.tasks import find_task
from backbones.cliptex.training.contrastive import sum_over_ranks
from backbones.cliptex.training.heads import TaskHeads
from backbones.cliptex.training.models import Start, Towers, load_start, map_shapes
from backbones.cliptex.training.optimizer import average, build_optimizer, learning_rate, update
from backbones.cliptex.training.processes import Place, processes
from backbones.cliptex.training.resume import load_state, remove_state, save_state
from backbones.cliptex.training.retrieval import recall
from backbones.cliptex.training.steps import Steps
from backbones.errors import NonFiniteLoss, UserError
from backbones.files import content_key


@dataclass(frozen=True)
class TrainResult:
    """What a training ends with.

    Attributes:
        path: the exported weights: ``backbones.create("cliptex", weights=path, any_architecture=True)``.
        sha256: digest of their tensors.
        key: identity of recipe, initial weights, pairs and labels.
        metrics: last losses and validation retrieval.
        cost: ``train_seconds``, ``train_flops``, ``flops_per_step``, ``images_per_second``, ``steps``.
        notes: things the user should know, one line each (unreadable pairs …).
        trained: False when the weights were there already.
    """

    path: Path
    sha256: str
    key: str
    metrics: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    trained: bool = True


def train(
    recipe: Recipe,
    *,
    init: str,
    pairs: PairSource,
    out: str | Path,
    labels: Labels | None = None,
    log: RunLog | None = None,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    resume_dir: str | Path | None = None,
    workers: int = 2,
    log_every: int = 20,
    norms_every: int = 100,
    save_seconds: float = 60.0,
) -> TrainResult:
    """Train and export a backbone, or return at once when ``out`` holds these very weights.

    Under ``torchrun`` every process calls this with the same arguments; the batch is split over them, and the result is
    that of one process up to the order of sums (and up to batch norms, which see each process's share by itself).

    Args:
        recipe: what to do; see ``recipes``.
        init: ``random``, ``open_clip/ARCH/PRETRAINED`` or a weights file of this suite.
        pairs: image-caption pairs.
        out: where the weights go (safetensors).
        labels: pseudo-labels (``LabelStore``, ``JoinedLabels``); read only when a task counts.
        log: gets ``train/loss``, ``train/loss_TASK``, ``train/lr``, ``train/images_per_second``, ``train/grad_norm``,
            ``train/grad_norm_TASK``, ``train/logit_scale``, ``train/lambda_TASK``, ``val/i2t_R@1`` …
        progress: one bar over the steps.
        device: ``cpu``, ``cuda`` …
        resume_dir: where the state is kept meanwhile (default: beside ``out``); an interrupted training goes on from
            there, on CPU to the same bits. Removed at the end.
        workers: loading processes where pairs do not fit into memory; never changes a result.
        log_every, norms_every: steps between log entries and between measurements of the losses' gradient norms.
        save_seconds: between savings of the state.

    Raises:
        UserError: recipe, pairs, labels or initial weights do not fit together; too many unreadable pairs.
        NonFiniteLoss: the loss broke; says at which step.
    """
    out = Path(out)
    if recipe.tasks and labels is None:
        raise UserError(f"recipe {recipe.name!r} learns {', '.join(recipe.tasks)} but has no labels; give --labels DIR")
    with processes(device) as place, torch.random.fork_rng(devices=[]):
        start = load_start(init, recipe.model, image_size=recipe.image_size, seed=recipe.seed)
        key = _key(recipe, start, pairs, labels)
        if done := place.share(_finished(out, key) if place.first else None):
            return done
        log = log if log and place.first else Silent()
        progress = progress if progress and place.first else Silent()
        state_path = (Path(resume_dir) if resume_dir else out.with_name(f"{out.name}.resume")) / "state.pt"

        label_size = _label_size(recipe, start)
        batches = TrainDataset(
            pairs, labels, recipe, tokenizer=start.tokenizer, data=start.data, label_size=label_size,
            rank=place.rank, world=place.world,
        )  # fmt: skip
        notes = _check_labels(batches)
        torch.manual_seed(recipe.seed)
        towers = Towers(start.model, start.data.layers, _heads(recipe, start, labels)).to(place.device)
        optimizer = build_optimizer(towers, recipe)
        steps = Steps(towers, recipe, label_size, place.device)
        ema = {name: t.clone() for name, t in start.model.state_dict().items()} if recipe.ema else {}
        bad = Tally(f"pairs of {pairs.name}")
        clock = {"seconds": 0.0, "flops_per_step": 0.0, "unlabelled": 0.0}  # of this process

        saved = place.share(load_state(state_path, key) if place.first else None)
        first = 0
        if saved:
            first = saved["step"]
            towers.load_state_dict(saved["towers"])
            optimizer.load_state_dict(saved["optimizer"])
            ema = {name: t.to(place.device) for name, t in saved["ema"].items()}
            clock, bad.bad = saved["clock"], saved["bad"]

        def save(step: int) -> None:
            clock["seconds"] = before + time.perf_counter() - began
            save_state(
                state_path,
                {
                    "key": key, "step": step, "towers": towers.state_dict(), "optimizer": optimizer.state_dict(),
                    "ema": ema, "clock": clock, "bad": bad.bad,
                },
            )  # fmt: skip

        batches.remember(progress, threads=max(1, workers))
        log.log_metrics({f"train/lambda_{name}": recipe.weight(name) for name in ("clip", *recipe.tasks)}, first)
        progress.start(f"train {recipe.name}", batches.steps)
        progress.advance(first)
        window = _Window(recipe)
        metrics: dict[str, float] = {}
        before, began, last_saved = clock["seconds"], time.perf_counter(), time.perf_counter()
        step, changing, buffers = first, False, towers.buffers_now()
        try:
            for batch in batches.loader(first, workers):
                torch.manual_seed((recipe.seed * 1_000_003 + step) * place.world + place.rank)  # of patch dropout
                count_bad(batch, bad)
                bad.check(len(pairs))
                batch = batch.to(place.device)
                if not clock["flops_per_step"]:
                    clock["flops_per_step"] = _flops(steps, batch) * place.world
                lr = learning_rate(recipe, step, batches.steps)
                losses, norms = steps.backward(batch, norms=step % norms_every == 0)
                changing = True
                norm = update(towers, optimizer, recipe, lr)
                if not math.isfinite(norm):
                    raise NonFiniteLoss(_broken(recipe, step, losses))
                if ema:
                    average(ema, towers.clip, recipe.ema, step)
                buffers = towers.buffers_now()
                step, changing = step + 1, False
                clock["unlabelled"] += batch.unlabelled

                window.add(losses, norm, recipe.batch_size)
                if step % log_every == 0 or norms or step == batches.steps:
                    metrics |= window.read(towers, lr)
                    log.log_metrics(metrics | {f"train/grad_norm_{name}": value for name, value in norms.items()}, step)
                if len(batches.held_out) and (step % batches.steps_per_epoch == 0 or step == batches.steps):
                    if place.first:
                        if step == batches.steps and ema:
                            towers.clip.load_state_dict(ema)
                        metrics |= _validate(steps, batches, place)
                        log.log_metrics({k: v for k, v in metrics.items() if k.startswith("val/")}, step)
                    place.wait()
                if place.first and time.perf_counter() - last_saved > save_seconds and step < batches.steps:
                    save(step)
                    last_saved = time.perf_counter()
                progress.advance()
        except KeyboardInterrupt:
            if place.first and not changing and step < batches.steps:
                towers.put_back(buffers)  # the forward pass of a step that was not finished counts for nothing
                save(step)
            raise
        seconds = before + time.perf_counter() - began
        cost = {
            "train_seconds": seconds,
            "train_flops": clock["flops_per_step"] * batches.steps,
            "flops_per_step": clock["flops_per_step"],
            "images_per_second": batches.steps * recipe.batch_size / seconds,
            "steps": float(batches.steps),
        }
        # each process read its own share
        bad.bad = {key: reason for found in place.gather(bad.bad) for key, reason in found.items()}
        notes += [bad.summary()] if bad.bad else []
        share = sum(place.gather(clock["unlabelled"])) / (batches.steps * recipe.batch_size)
        notes += (
            [f"{share:.1%} of what was trained on has no labels, and counts for the contrast alone"] if share else []
        )
        weights = ema or start.model.state_dict()
        if place.first:
            extra = {
                "recipe": recipe.settings(), "key": key, "init": init, "init_sha256": start.digest,
                "labels": labels.identity if labels is not None and recipe.tasks else "",
                "pairs": {"name": pairs.name, "count": len(pairs), "fingerprint": pairs.fingerprint},
                "metrics": metrics, "cost": cost, "notes": notes,
            }  # fmt: skip
            save_checkpoint(
                out, weights, architecture=start.architecture, model_config=start.model_config, data=start.data,
                licence=start.licence, source=f"{recipe.name} from {start.source}", extra=extra,
            )  # fmt: skip
            remove_state(state_path)
        place.wait()
        return TrainResult(out, state_sha256(dict(weights)), key, metrics, cost, notes)


def find_trained(
    recipe: Recipe, *, init: str, pairs: PairSource, out: str | Path, labels: Labels | None = None
) -> TrainResult | None:
    """What ``train`` would return at once because ``out`` holds these very weights; None when it would have to train.

    Raises:
        UserError: the initial weights cannot be had.
    """
    if not Path(out).is_file():
        return None
    start = load_start(init, recipe.model, image_size=recipe.image_size, seed=recipe.seed)
    return _finished(Path(out), _key(recipe, start, pairs, labels))


def _key(recipe: Recipe, start: Start, pairs: PairSource, labels: Labels | None) -> str:
    init = content_key([start.digest, start.architecture, start.model_config])
    return recipe.key(init, pairs.fingerprint, labels.identity if labels is not None and recipe.tasks else "")


def _finished(out: Path, key: str) -> TrainResult | None:
    """The result stored with ``out`` when it was made by the same recipe from the same inputs."""
    if not out.is_file():
        return None
    try:
        checkpoint = read_checkpoint(out)
    except UserError:  # damaged: made again, as if it were not there
        return None
    extra = checkpoint.extra
    if extra.get("key") != key:
        return None
    return TrainResult(out, checkpoint.sha256, key, extra["metrics"], extra["cost"], extra["notes"], trained=False)


def _label_size(recipe: Recipe, start: Start) -> int:
    """Side of the dense predictions: the recipe's, or four pixels for each cell of the finest map, at most the image's
    own size."""
    if not recipe.tasks:
        return 0
    finest = min(stride for _, stride in map_shapes(start))
    return recipe.label_size or min(start.data.size[0], 4 * start.data.size[0] // finest)


def _heads(recipe: Recipe, start: Start, labels: Labels | None) -> TaskHeads | None:
    if not recipe.tasks or labels is None:
        return None
    outputs = {}
    for task in map(find_task, recipe.tasks):
        classes = labels.classes.get(task.name, ())
        if task.has_classes and not classes:
            others = ",".join(name for name in recipe.tasks if name != task.name)
            raise UserError(f"the labels have no classes of {task.name}; leave it out with --set experts={others}")
        outputs[task.name] = task.channels(classes)
    channels = [count for count, _ in map_shapes(start)]
    width = recipe.head_width or min(256, max(channels) // 2)
    return TaskHeads(channels, outputs, width)


def _check_labels(batches: TrainDataset) -> list[str]:
    """Labels of other pairs are found out before hours of work, not after; what is said of the others."""
    if batches.labels is None:
        return []
    pairs, labels, missing = batches.pairs, batches.labels, set(batches.recipe.tasks)
    stride = max(1, len(pairs) // 32)
    for index in (index for first in range(stride) for index in range(first, len(pairs), stride)):  # spread ones first
        missing -= set(labels.tasks_of(pairs.key(index)))
        if not missing:
            side = min(min(label.shape[-2:]) for label in labels.get(pairs.key(index), batches.recipe.tasks).values())
            wanted = batches.label_size
            coarse = f"labels have {side} pixels and are compared at {wanted}: label with label_side={2 * wanted}"
            return [coarse] if side < wanted else []
    raise UserError(f"the labels have no {min(missing)} for pairs such as {pairs.key(0)}; label {pairs.name} first")


def _flops(steps: Steps, batch: Batch) -> float:
    """Floating-point operations of one process's step; one extra pass, no communication, no trace in the model."""
    buffers = steps.towers.buffers_now()
    part = batch.split(steps.recipe.accumulate)[0]

    def embed() -> Mapping[str, Any]:
        with steps.autocast():
            return steps.towers(part.images, part.tokens, steps.label_size)

    def forward_and_backward() -> None:
        out = embed()
        loss: Any = (out["image"] @ out["text"].T).float().mean()
        for task in steps.recipe.tasks:
            loss = loss + find_task(task).loss(out["dense"][task], part.targets[task])[0]
        loss.backward()

    total = count_flops(forward_and_backward) * steps.recipe.accumulate
    steps.towers.zero_grad(set_to_none=True)
    if steps.recipe.accumulate > 1:
        with torch.no_grad():
            total += count_flops(embed) * steps.recipe.accumulate
    steps.towers.put_back(buffers)
    return float(total)


@torch.no_grad()
def _validate(steps: Steps, batches: TrainDataset, place: Place) -> dict[str, float]:
    steps.towers.eval()
    images, texts = [], []
    for batch in batches.validation():
        batch = batch.to(place.device)
        with steps.autocast():
            out = steps.towers(batch.images, batch.tokens)
        images.append(out["image"].float())
        texts.append(out["text"].float())
    steps.towers.train()
    return {f"val/{name}": value for name, value in recall(torch.cat(images), torch.cat(texts)).items()}


class _Window:
    """Means of the losses since they were last read."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.names = ("clip", *recipe.tasks)
        self._clear()

    def _clear(self) -> None:
        self.losses: list[Tensor] = []
        self.norm, self.images, self.began = 0.0, 0, time.perf_counter()

    def add(self, losses: Mapping[str, Tensor], norm: float, images: int) -> None:
        self.losses.append(torch.stack([losses[name] for name in self.names]))
        self.norm, self.images = norm, self.images + images

    def read(self, towers: Towers, lr: float) -> dict[str, float]:
        local = torch.stack(self.losses).mean(0)
        mean = (sum_over_ranks(local) / sum_over_ranks(torch.ones_like(local))).tolist()
        logit_scale: Any = towers.clip.logit_scale
        read = {f"train/loss_{name}": value for name, value in zip(self.names, mean, strict=True)}
        read["train/loss"] = sum(self.recipe.weight(name) * read[f"train/loss_{name}"] for name in self.names)
        read |= {"train/lr": lr, "train/grad_norm": self.norm, "train/logit_scale": logit_scale.exp().item()}
        read["train/images_per_second"] = self.images / (time.perf_counter() - self.began)
        self._clear()
        return read


def _broken(recipe: Recipe, step: int, losses: Mapping[str, Tensor]) -> str:
    named = ", ".join(f"{name} {loss.item():.4g}" for name, loss in losses.items())
    return (
        f"recipe {recipe.name!r}: the gradient became NaN or infinite at step {step + 1} (losses: {named}); "
        f"lower lr or the lambdas, or use precision=fp32"
    )
