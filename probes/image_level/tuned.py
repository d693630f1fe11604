"""``linear`` and ``attentive`` classification in every tier: where the backbone trains (``tune``),
it and one head are trained end to end on random crops, by AdamW with a warm-up and a cosine.

The head of ``linear`` begins as the frozen tier's, which is trained on the same images (Kumar et
al., ICLR 2022: a head that begins at zero distorts features first). The rate of the backbone is
chosen on a held-out part of train; all of train is then trained on. Crops differ each time, so what
is frozen of ``blocks:N`` is computed each time, without gradients.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from backbones.backbone import Backbone
from cliptex_common.device import processor_seconds, seed_devices, upload
from cliptex_common.errors import NonFiniteLoss
from cliptex_common.files import content_key, derive_seed
from cliptex_common.progress import Pace
from probes.base import Context, Head, TaskResult, load_state, save_state
from probes.image_level import linear
from probes.image_level.classification import fit_temperature, score, targets, top1
from probes.image_level.encode import (
    Encode,
    Encoding,
    ImageViews,
    autocast,
    encode_split,
    encoder,
    encoding_of,
    input_size,
    layer_columns,
)
from probes.image_level.linear import RandomCrops, Samples, cosine, loss_of
from probes.image_level.multi_label import mean_precision, metric_of, strata
from probes.select import Candidate, log_scores, select_candidate, stratified_split
from probes.team import Parts, Team, portable, restored, seed_part, team_of

if TYPE_CHECKING:
    from backbones.tuning import Tuning

log = logging.getLogger("cliptex.training")
WARMUP = 0.05  # share of the iterations


@dataclass
class Method:
    """What a probe trains.

    Attributes:
        read: backbone → function from its images to what the head reads; can be pickled.
        head: indices of training images → the head to begin with, on the device.
        rate: of the head; None for that of the backbone.
    """

    read: Callable[[Backbone], Encode]
    head: Callable[[Tensor], nn.Module]
    rate: float | None = None


@dataclass
class Tuned:
    """What was trained: a frozen backbone with the tuned weights, and the head; the temperature of
    held-out images, if there were some."""

    backbone: Backbone
    head: Any
    temperature: float | None
    notes: list[str]


def run_linear(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    settings = context.settings
    if context.head is not None or not settings.is_tuned:
        return linear.run(context)
    encoding, columns = settings.encoding(context.device.type), layer_columns(context)
    read = partial(column_encoder, encoding=encoding, columns=columns)
    tuned = tune(context, Method(read, lambda members: probe_head(context, members)))
    weight, bias = tuned.head.weight.detach().T.contiguous(), tuned.head.bias.detach()
    tensors = {
        "mean": torch.zeros(len(weight)),
        "scale": torch.ones(len(weight)),
        "weight": weight,
        "bias": bias,
    }
    about = {"encoding": asdict(encoding), "columns": (columns.start, columns.stop)}
    head = store(context, tuned, tensors, temperature=tuned.temperature, **about)
    logits = predict(context, read(tuned.backbone), tuned.head, "val")
    return score(context, logits, tuned.notes, head)


def column_encoder(backbone: Backbone, encoding: Encoding, columns: slice) -> Encode:
    """The function from normalised images to some columns of their features."""
    encode = encoder(backbone, encoding)
    return lambda images: encode(images)[:, columns]


def run_attentive(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    from probes.image_level import attentive  # which needs timm

    settings = context.settings
    if context.head is not None:
        context = context.with_head_weights()
    if context.head is not None or not settings.is_tuned:
        return attentive.run(context)
    read = partial(attentive.token_encoder, pool=settings.pool)
    rate = settings.learning_rates[0] if len(settings.learning_rates) == 1 else None
    head = attentive.create_heads(context).to(context.device)[0]
    tuned = tune(context, Method(read, lambda members: copy.deepcopy(head), rate))
    about = {"pool": settings.pool, "channels": tuned.head[-1].in_features}
    encoding = asdict(settings.encoding(context.device.type))
    stored = store(context, tuned, tuned.head.state_dict(), encoding=encoding, **about)
    logits = predict(context, read(tuned.backbone), tuned.head, "val")
    return score(context, logits, tuned.notes, stored)


def store(context: Context, tuned: Tuned, tensors: Any, **about: Any) -> Head:
    """The stored head, with the tuned weights beside its own; see ``Head.PREFIX``."""
    from backbones.tuning import changed_weights  # the frozen tier needs no library of models

    weights = changed_weights(context.backbone, tuned.backbone)
    tensors = {**tensors, **{f"{Head.PREFIX}{name}": each for name, each in weights.items()}}
    return Head.of(context, tensors, tune=context.settings.tune, **about)


def probe_head(context: Context, members: Tensor) -> nn.Linear:
    """The linear classifier of the frozen tier on some training images, at the rate of its grid
    that is best on the others (or has the lowest loss, where there are none), as a layer on
    features as they are."""
    settings, device = context.settings, context.device
    features, labels = encode_split(context, "train"), targets(context, "train")
    train = Samples(features, labels, len(context.data.classes), members)
    rest = torch.ones(len(labels), dtype=torch.bool).index_fill(0, members, False)
    others = replace(train, members=rest.nonzero().squeeze(1) if rest.any() else members)
    heads = linear.zero_heads(train, len(settings.grid), settings, device)
    for _ in linear.train_linear(heads, train, settings.grid, settings, context.seed):
        pass
    candidates = linear.evaluate_grid(heads, settings.grid, others, device)
    best, _ = select_candidate(candidates, metric_of(labels), len(others))
    number, scale = candidates.index(best), heads.standardise.scale
    weight = (heads.weights[number] * scale[:, None]).detach()
    layer = nn.Linear(weight.shape[0], weight.shape[1], device=device)
    with torch.no_grad():
        layer.weight.copy_(weight.T)
        layer.bias.copy_(heads.biases[number] - heads.standardise.mean @ weight)
    return layer


def tune(context: Context, method: Method) -> Tuned:
    """Train with each rate of the backbone on a part of train, and with the one that is best on the
    rest on all of it. Logs ``select/METRIC/lr_…``."""
    settings, labels = context.settings, targets(context, "train")
    started = processor_seconds(context.device)
    rates, notes, temperature = sorted(settings.backbone_rates), list[str](), None
    with context.cost.phase("train"):
        if len(rates) > 1:
            advice = f"give one rate of the backbone with --set tune_rates={rates[0]:g}"
            split = stratified_split(strata(labels), settings.holdout, context.seed, advice)
            training, held_out = split
            metric, true = metric_of(labels), labels[held_out]
            candidates, logits_of, failed = [], {}, list[str]()
            for rate in rates:
                try:
                    tuning, head = train(context, method, training, rate)
                except NonFiniteLoss as error:
                    failed.append(f"learning rate {rate:g} failed: {error}")
                    if len(failed) == len(rates):
                        raise
                    candidates.append(Candidate(rate, f"lr_{rate:g}", math.nan, coordinate=rate))
                    continue
                encode = method.read(tuning.backbone)
                logits = predict(context, encode, head, "train", held_out.tolist())
                measure = mean_precision if true.dim() == 2 else top1
                loss = loss_of(logits, true).item()
                each = Candidate(rate, f"lr_{rate:g}", measure(logits, true), loss, rate)
                candidates.append(each)
                logits_of[rate] = logits
                del tuning, head, encode  # the next rate needs the memory
            log_scores(context.log, metric, candidates, 0)
            best, reason = select_candidate(candidates, metric, len(held_out))
            rates = [best.value]
            chosen = f"learning rate of the backbone {best.value:g}: {reason}; then trained on all"
            notes = [chosen, *failed]
            if true.dim() == 1:
                temperature = fit_temperature(logits_of[best.value], true)
        tuning, head = train(context, method, torch.arange(len(labels)), rates[0])
    context.cost.processor_seconds += processor_seconds(context.device) - started
    context.cost.trained_parameters = sum(map(Tensor.numel, tuning.trained.values()))
    notes.insert(0, f"{tuning.summary()}; it is tuned for this task alone")
    return Tuned(tuning.merged(), head, temperature, notes)


@dataclass(frozen=True)
class Batches(Sequence[list[int]]):
    """The samples of each iteration, listed when they are asked for: of a long training they are
    hundreds of millions."""

    iterations: range
    size: int
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.iterations)

    def __getitem__(self, index: Any) -> Any:
        start = self.iterations[index] * self.size
        return [start + row for row in self.rows]


def head_groups(
    head: nn.Module, rate: float, decay: float, decays_all: bool = False
) -> list[dict[str, Any]]:
    """Parameter groups of a head: biases and norms do not decay, as timm's
    ``param_groups_weight_decay`` has it, unless all do."""
    parameters: tuple[list[Tensor], list[Tensor]] = [], []
    for each in head.parameters():
        parameters[decays_all or each.ndim > 1].append(each)
    return [
        {"params": some, "lr": rate, "weight_decay": decay * number}
        for number, some in enumerate(parameters)
        if some
    ]


def train(
    context: Context, method: Method, members: Tensor, rate: float, team: Team | None = None
) -> tuple[Tuning, nn.Module]:
    """Train a copy of the backbone and a head on some training images. It resumes from a state in
    ``work_dir``, of the same settings, seed, backbone, data and images.

    Args:
        team: in another process than its first: train as one of it. Else a batch in parts makes one
            where there are several accelerators.

    Raises:
        NonFiniteLoss: it diverged.
    """
    from backbones.tuning import Average, Tuning

    settings, data, device = context.settings, context.data, context.device
    encoding = settings.encoding(device.type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("tune", context.seed))
        tuning = Tuning(
            context.backbone,
            settings.tune,
            lambda copy, images: [method.read(copy)(images)],
            input_size(encoding.size, context.backbone),
            drop_path=settings.drop_path,
            checkpointing=settings.checkpointing,
        )
        head = method.head(members).train()
    decay = settings.weight_decays[0]
    decays_all = getattr(settings, "decay_biases", False)
    groups = [
        *tuning.groups(rate, decay, settings.layer_decay),
        *head_groups(head, method.rate or rate, decay, decays_all),
    ]
    betas = (0.9, getattr(settings, "beta2", 0.999))
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=getattr(settings, "epsilon", 1e-8))
    average = Average((each for group in groups for each in group["params"]), settings.ema)
    highest = [group["lr"] for group in optimizer.param_groups]
    labels = targets(context, "train")[members]
    paths = [data.root / data.samples["train"][index].image for index in members.tolist()]
    size = min(settings.batch_size, len(paths))
    epoch_length = settings.epoch_length or math.ceil(len(paths) / size)
    iterations = settings.epochs * epoch_length
    key = content_key(
        {
            "settings": asdict(settings),
            "rate": rate,
            "seed": context.seed,
            "backbone": context.backbone.identity(),
            "data": data.fingerprint,
            "images": [str(path) for path in paths],
        }
    )
    file = context.work_dir / f"tuned_{rate:g}_{len(paths)}.pt"
    iteration, total = 0, torch.zeros((), device=device)
    if state := load_state(file, key, log.warning):
        head.load_state_dict(state["head"])
        with torch.no_grad():
            for name, parameter in tuning.trained.items():
                parameter.copy_(state["trained"][name])
        optimizer.load_state_dict(state["optimizer"])
        average.load(state.get("average", ()))  # older states have none
        iteration, total = state["iteration"], state["total"].to(device)
    crops = RandomCrops(context, paths, lambda images: images)
    context.progress.start(f"tuning at rate {rate:g}", iterations)
    context.progress.advance(iteration)
    encode, saving = method.read(tuning.backbone), Pace(linear.SAVE_EVERY)
    tuning.train(True)
    trained = [each for group in groups for each in group["params"]]
    with ExitStack() as processes:
        if team is None and iteration < iterations:
            numbers = sum(each.numel() for each in (*trained, *head.buffers()))
            alike = replace(method, head=partial(_as_it_is, copy.deepcopy(head).cpu()))
            args = portable(context), alike, members, rate
            team = processes.enter_context(
                team_of(context, (numbers, len(trained)), size, _follow, *args)
            )
        parts = Parts(size, settings.accumulate, team)
        rows = parts.split(lambda rows: rows)

        def loss_of_part(
            iteration: int, images: Tensor, classes: Tensor, number: int
        ) -> tuple[Tensor, dict[str, Tensor]]:
            seed_part(context.seed, iteration, number)
            with tuning.computing(), autocast(device, settings.precision):
                outputs = encode(images[rows[number]])
            loss = loss_of(head(outputs.float()), classes[rows[number]])
            return loss, {"loss": loss}

        batches = Batches(range(iteration, iterations), size, parts.loaded)
        for items, images in zip(batches, crops.tensors(batches), strict=True):
            seed_devices(derive_seed("iteration", context.seed, 0, iteration) % 2**32)
            classes = upload(labels[[crops.index(item) for item in items]], device)
            share = cosine(iteration, iterations, round(WARMUP * iterations))
            for group, lr in zip(optimizer.param_groups, highest, strict=True):
                group["lr"] = lr * share
            compute = partial(loss_of_part, iteration, images, classes)
            total = total + parts.accumulate(head, trained, compute)["loss"]
            optimizer.step()
            optimizer.zero_grad()
            average.update()
            iteration += 1
            context.progress.advance()
            if epoch_ends := iteration % epoch_length == 0:
                mean = total.item() / epoch_length
                if not math.isfinite(mean):
                    raise NonFiniteLoss(
                        f"the loss is not finite at {iteration=}; try lower tune_rates, or"
                        " precision=fp32"
                    )
                context.log.log_metrics({f"train/loss/lr_{rate:g}": mean}, iteration)
                total = torch.zeros_like(total)
            if parts.is_first and (epoch_ends or saving.is_due):
                state = {
                    "head": head.state_dict(),
                    "trained": {name: each.detach() for name, each in tuning.trained.items()},
                    "optimizer": optimizer.state_dict(),
                    "average": average.values,
                    "iteration": iteration,
                    "total": total,
                }
                with saving.timed():
                    save_state(file, key, state)
    average.apply()
    tuning.train(False)
    return tuning, head.eval()


def _as_it_is(head: nn.Module, members: Tensor) -> nn.Module:
    return head


def _follow(
    team: Team, device: torch.device, context: Context, method: Method, members: Tensor, rate: float
) -> None:
    """``train`` in another process of a team."""
    (context,) = restored([context], device)
    method = replace(method, head=partial(_as_it_is, method.head(members).to(device)))
    train(context, method, members, rate, team)


@torch.no_grad()
def predict(
    context: Context,
    encode: Encode,
    head: nn.Module,
    split: Any,
    members: Sequence[int] | None = None,
) -> Tensor:
    """(N, C) float32 logits of the images of a split, or of some, on the CPU."""
    samples = context.data.samples[split]
    chosen = samples if members is None else [samples[index] for index in members]
    paths = [context.data.root / sample.image for sample in chosen]
    views = ImageViews(context, context.backbone, paths, encoding_of(context), encode=encode)
    return torch.cat([head(features).cpu() for features in views.tensors()])
