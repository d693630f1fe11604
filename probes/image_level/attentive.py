"""``attentive`` classification: an attention pool with one learned query over the frozen patch
tokens, and a linear classifier.

What backbones without a trained class token are judged by (V-JEPA, CAPI, AIM); the pool is SigLIP's
and timm's ``AttentionPoolLatent``. One head for each learning rate, all trained by AdamW on one
frozen pass over random crops of train; the one that is best on a held-out part of train is scored.
Tokens of a whole training set would fill a disk: none are kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from common.errors import NonFiniteLoss
from common.files import atomic_write, derive_seed
from probes.base import Context, TaskResult
from probes.features.cost import EncodeRun
from probes.image_level import random_crops
from probes.image_level.classification import at_the_edge, best_of, held_out_split, score, targets
from probes.image_level.encode import Images, autocast, fitting, normalised
from probes.image_level.linear import cosine, ranks
from probes.image_level.settings import AttentiveSettings
from probes.runner.shared_parts import counted


def run(context: Context) -> TaskResult:
    """See ``probes.image_level.probe``."""
    settings: AttentiveSettings = context.settings
    encoding, started, labels = (
        EncodeRun.of(context),
        time.perf_counter(),
        targets(context, "train"),
    )
    kept, held = held_out_split(labels, settings, context.seed)
    paths = [context.data.root / sample.image for sample in context.data.samples["train"]]
    heads = make_heads(context)
    with encoding.cost.timed():
        flops = train(context, heads, [paths[index] for index in kept], labels[kept], encoding)
        trained = time.perf_counter()
        chosen = logits_of(context, heads, [paths[index] for index in held], encoding)
        scores = [
            (
                100 * (ranks(each, labels[held]) == 0).double().mean().item(),
                F.cross_entropy(each, labels[held]).item(),
            )
            for each in chosen
        ]
        best = best_of(scores)
        val = [context.data.root / sample.image for sample in context.data.samples["val"]]
        (logits,) = logits_of(context, [heads[best]], val, encoding)
    rates = settings.learning_rates
    context.log.log_metrics(
        {f"select/top1/lr_{r:g}": s[0] for r, s in zip(rates, scores, strict=True)}, 0
    )
    result = score(context, logits)
    result.cost = encoding.cost.added_to(
        {
            "train_seconds": trained - started,
            "eval_seconds": time.perf_counter() - trained,
            "train_flops": flops,
        }
    )
    why = (
        f"best of {len(rates)} on {len(held)} held-out training images (top1 {scores[best][0]:.1f})"
    )
    result.notes = [f"learning rate {rates[best]:g}: {why}{at_the_edge(rates[best], rates)}"]
    return result


def make_heads(context: Context) -> list[nn.Module]:
    """A head for each learning rate, all from the same weights: normalised tokens (N, L, C) →
    logits (N, classes)."""
    height, width = fitting(context.settings.encoding(context.device.type).size, context.backbone)
    image = torch.zeros(1, 3, height, width, device=context.device)
    channels = tokens_of(context, image).shape[2]
    attention = next(
        heads for heads in (channels // 64, 8, 4, 2, 1) if heads and channels % heads == 0
    )
    made: list[nn.Module] = []
    for _ in context.settings.learning_rates:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("attentive", context.seed))
            pool = AttentionPoolLatent(channels, num_heads=attention)
            head = nn.Sequential(
                nn.LayerNorm(channels), pool, nn.Linear(channels, len(context.data.classes))
            )
        made.append(head.to(context.device))
    return made


def tokens_of(context: Context, images: Tensor) -> Tensor:
    """Class token and patch tokens of the last block, (N, 1 + patches, C) float32."""
    with torch.no_grad(), autocast(context.device, context.settings.precision):
        token, patches = context.backbone.encode_tokens(images, 1)[0]
    return torch.cat([token[:, None], patches], dim=1).float()


def encoded(
    context: Context, images: Images, batches: Sequence[Sequence[int]], run: EncodeRun
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Items of each batch, and their tokens."""
    how = context.settings.encoding(context.device.type)
    for items, pixels in zip(
        batches, normalised(images, batches, context.backbone, run), strict=True
    ):
        parts = [
            run.cost.run(lambda part: tokens_of(context, part), part)
            for part in pixels.split(how.batch_size)
        ]
        yield items, torch.cat(parts)


def train(
    context: Context,
    heads: Sequence[nn.Module],
    paths: Sequence[Path],
    labels: Tensor,
    run: EncodeRun,
) -> float:
    """Train the heads, from where a killed process has left them; returns the operations of the
    heads alone.

    Raises:
        NonFiniteLoss: every head diverged; one that does so alone is left to lose.
    """
    settings: AttentiveSettings = context.settings
    backbone, device, length = context.backbone, context.device, settings.batch_size
    size = fitting(settings.encoding(device.type).size, backbone)
    crops = random_crops.RandomCrops(paths, size, backbone.data, context.seed)
    whole = settings.epochs * -(-len(paths) // length)
    groups = [
        {"params": head.parameters(), "lr": rate}
        for head, rate in zip(heads, settings.learning_rates, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    file, done, flops = context.work_dir / "heads.pt", 0, 0.0
    parts = nn.ModuleList(heads)
    if file.is_file():
        left = torch.load(file, map_location=device, weights_only=True)
        parts.load_state_dict(left["heads"])
        optimizer.load_state_dict(left["optimizer"])
        done = left["iteration"]
    context.progress.start(f"training {len(heads)} attentive heads on random crops", whole)
    context.progress.advance(done)
    saved = time.monotonic()
    batches = [range(i * length, (i + 1) * length) for i in range(done, whole)]
    for items, tokens in encoded(context, crops, batches, run):
        truth = labels[[crops.index(item) for item in items]].to(device)
        for group, rate in zip(optimizer.param_groups, settings.learning_rates, strict=True):
            group["lr"] = rate * cosine(done / whole)
        optimizer.zero_grad()
        losses, step_flops = counted(lambda: _backward(parts, tokens, truth), not flops)  # noqa: B023 – called at once
        flops = flops or step_flops
        optimizer.step()
        done += 1
        context.progress.advance()
        if last := done % max(1, whole // settings.epochs) == 0:
            if not bool(losses.isfinite().any()):
                raise NonFiniteLoss(
                    f"attentive: the loss of every head is not finite at iteration {done}"
                )
            context.log.log_metrics({"train/loss": losses.nan_to_num(torch.inf).min().item()}, done)
        if last or time.monotonic() - saved > random_crops.SAVE_EVERY:
            with atomic_write(file) as temporary:
                state = {
                    "iteration": done,
                    "heads": parts.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                torch.save(state, temporary)
            saved = time.monotonic()
    return flops * whole


def _backward(heads: nn.ModuleList, tokens: Tensor, truth: Tensor) -> Tensor:
    """The loss of each head, (heads,), whose gradients are each head's own."""
    losses = torch.stack([F.cross_entropy(head(tokens), truth) for head in heads])
    losses.sum().backward()
    return losses.detach()


@torch.no_grad()
def logits_of(
    context: Context, heads: Sequence[nn.Module], paths: Sequence[Path], run: EncodeRun
) -> list[Tensor]:
    """(N, classes) float32 on the CPU, of each head."""
    how = context.settings.encoding(context.device.type)
    images = Images(paths, fitting(how.size, context.backbone), context.backbone.data)
    batches = [
        range(start, min(start + how.batch_size, len(paths)))
        for start in range(0, len(paths), how.batch_size)
    ]
    context.progress.start("encoding images", len(paths))
    found: list[list[Tensor]] = [[] for _ in heads]
    for items, tokens in encoded(context, images, batches, run):
        for each, head in zip(found, heads, strict=True):
            each.append(head.eval()(tokens).cpu())
        context.progress.advance(len(items))
    return [torch.cat(each) for each in found]
