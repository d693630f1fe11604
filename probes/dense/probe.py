"""The dense probes: semantic segmentation, depth and surface normals, each with a linear, a DeepLabv3 and a PSPNet
head.

One config is generated for all nine: mmseg's encoder-decoder over the frozen backbone, whose maps are brought to one
stride and concatenated. What differs between kinds is the objective, the truth and the scores; what differs between
probes is the head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backbones.errors import UserError
from backbones.files import content_key
from probes.base import Context, TaskResult
from probes.datasets.base import Kind, Split
from probes.registry import register_probe
from probes.runner.lockstep import Steps, drain

if TYPE_CHECKING:
    from mmengine.config import Config

    from probes.runner.stream import Seat

OWN_MODULES = (
    "probes.runner.bridge",
    "probes.dense.heads",
    "probes.dense.data",
    "probes.features.crops",
    "probes.dense.metrics",
)
PROBES = ("linear", "deeplabv3", "pspnet")


@dataclass(frozen=True)
class DenseSettings:
    """Protocol of a dense probe; every field is part of the task's identity.

    Attributes:
        size: short side in pixels of images at test time, and side of the square crops of training (rounded up to the
            backbone's divisor). Scores are at the label's own resolution whatever the size.
        scale_range: in training images are resized to ``size`` × a random factor of this range before they are
            cropped.
        flip: probability of a horizontal flip in training (the x of normals changes sign with it).
        max_iters, batch_size: length of training; images of a batch (at least 2 for deeplabv3 and pspnet).
        optimizer: ``adamw`` or ``sgd`` (momentum 0.9).
        lr, weight_decay: of the optimizer.
        lr_grid: learning rates to choose from, in the place of ``lr``: a head is trained with each on nine tenths of the
            training images, and the one that does best on the others is scored; see ``probes.dense.lr_grid``. Empty: ``lr``.
        schedule: ``poly`` (power 0.9) or ``cosine`` from ``lr`` to 0, after the warm-up.
        warmup: share of ``max_iters`` over which the learning rate grows linearly from nearly 0.
        layers: ``all`` of the backbone's feature maps, or the ``last`` only.
        feature_stride: the maps are resized (bilinear) to this stride and concatenated.
        channels, dropout: width of the deeplabv3 and pspnet heads and dropout before their last convolution.
        precision: of the frozen backbone, ``fp32`` or ``bf16``; heads and losses are in fp32.
        views: 0 makes a fresh random crop of a training image each time that it is drawn; k ≥ 1 draws one of k crops
            that follow from the image's content alone (the first is the centre at scale 1), turned with probability
            ``flip``. See ``probes.features.crops``.
        cache: ``none`` encodes an image whenever it is drawn; ``fp16``, ``bf16`` or ``fp32`` encodes each view once,
            for all probes, seeds and runs, and keeps its maps in this precision (``views`` must be 1 or more).
    """

    size: int = 512
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    max_iters: int = 40_000
    batch_size: int = 16
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    schedule: str = "poly"
    warmup: float = 0.05
    layers: str = "all"
    feature_stride: int = 8
    channels: int = 512
    dropout: float = 0.1
    precision: str = "fp32"
    views: int = 0
    cache: str = "none"
    lr_grid: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("scale_range", "lr_grid"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list from JSON is the same protocol
        if len(self.scale_range) != 2:
            raise UserError(f"scale_range={self.scale_range!r} is not possible; it must be two factors, low and high")
        low, high = self.scale_range
        checks = {
            "optimizer": (self.optimizer in ("adamw", "sgd"), "adamw or sgd"),
            "schedule": (self.schedule in ("poly", "cosine"), "poly or cosine"),
            "layers": (self.layers in ("all", "last"), "all or last"),
            "precision": (self.precision in ("fp32", "bf16"), "fp32 or bf16"),
            "views": (self.views >= 0, "0 or more"),
            "cache": (self.cache in ("none", "fp16", "bf16", "fp32"), "none, fp16, bf16 or fp32"),
            "scale_range": (0 < low <= high, "two factors, 0 < low <= high"),
            "flip": (0 <= self.flip <= 1, "a probability"),
            "warmup": (0 <= self.warmup < 1, "a share below 1"),
            "dropout": (0 <= self.dropout < 1, "a share below 1"),
            "size": (self.size >= 16, "16 pixels or more"),
            "lr": (self.lr > 0, "above 0"),
            "lr_grid": (not self.lr_grid or (len(set(self.lr_grid)) == len(self.lr_grid) > 1 and min(self.lr_grid) > 0),
                        "two or more different rates above 0, or none (and lr the only one)"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            **{name: (getattr(self, name) >= 1, "1 or more")
               for name in ("max_iters", "batch_size", "feature_stride", "channels")},
        }  # fmt: skip
        for name, (right, wanted) in checks.items():
            if not right:
                raise UserError(f"{name}={getattr(self, name)!r} is not possible; it must be {wanted}")
        if self.cache != "none" and not self.views:
            raise UserError(f"cache={self.cache} keeps features of views that repeat; set views=1 or more as well")


@dataclass(frozen=True)
class SegmentationSettings(DenseSettings):
    """Defaults: mmseg's 512 px, 40k iterations of 16 images, scale 0.5–2."""


@dataclass(frozen=True)
class DepthSettings(DenseSettings):
    """Range, file scale and evaluation crop are the dataset's own protocol (``DatasetSpec.extra``).

    Defaults: NYU-v2's 480 px, 20k iterations. Images are not scaled at random: enlarging one changes the depth it
        shows.

    Attributes:
        silog_balance: λ of the scale-invariant loss, 0 (log RMSE) … 1 (the scale of an image is free).
    """

    size: int = 480
    scale_range: tuple[float, float] = (1.0, 1.0)
    max_iters: int = 20_000
    silog_balance: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.silog_balance <= 1:
            raise UserError(f"silog_balance={self.silog_balance!r} is not possible; it must be between 0 and 1")


@dataclass(frozen=True)
class NormalSettings(DenseSettings):
    """Defaults: NYU-v2's 480 px, 20k iterations, without random scaling as for depth."""

    size: int = 480
    scale_range: tuple[float, float] = (1.0, 1.0)
    max_iters: int = 20_000


SETTINGS: Mapping[Kind, type[DenseSettings]] = {
    "segmentation": SegmentationSettings,
    "depth": DepthSettings,
    "normals": NormalSettings,
}
METRICS: Mapping[Kind, Mapping[str, int]] = {
    "segmentation": {"mIoU": 1, "mAcc": 1, "aAcc": 1},
    "depth": {"abs_rel": -1, "rmse": -1, "log10": -1, "delta1": 1, "delta2": 1, "delta3": 1},
    "normals": {"normal_mean": -1, "normal_median": -1, "normal_11.25": 1, "normal_22.5": 1, "normal_30": 1},
}


@dataclass
class DenseProbe:
    """A dense probe; see ``probes.base.Probe``."""

    name: str
    kind: Kind
    settings_type: type
    metrics: Mapping[str, int]
    version: int = 2
    needs_text: bool = False
    splits: tuple[Split, ...] = ("train", "val")

    def config(self, context: Context) -> str:
        """The resolved MMEngine config; it runs with plain mmengine. With ``lr_grid`` that of the first rate."""
        from probes.dense.lr_grid import held_out, with_rate
        from probes.runner.training import resolved

        if rates := context.settings.lr_grid:
            context = with_rate(context, rates[0])
            return resolved(dense_config(self, context, held_out(context)), context).pretty_text
        return resolved(dense_config(self, context), context).pretty_text

    def family(self, context: Context) -> str | None:
        """The same for probes that read the same batches: of one backbone's features if they are kept, else of one dataset."""
        from probes.dense.lr_grid import held_out
        from probes.features.precompute import features_key

        settings = context.settings
        config = dense_config(self, context, held_out(context) if settings.lr_grid else frozenset())
        if settings.cache != "none":
            return content_key([features_key(config, context), settings.batch_size, context.seed])
        encoder = [config.model.backbone.to_dict(), config.model.data_preprocessor.to_dict()]
        return content_key([config.train_dataloader.to_dict(), encoder, context.backbone.identity(), context.seed])

    def run(self, context: Context) -> TaskResult:
        """All of ``steps`` at once."""
        return drain(self.steps(context))

    def steps(self, context: Context, seat: Seat | None = None) -> Steps[TaskResult]:
        """Train the head on ``train`` and score ``val`` at the resolution of its labels.

        Raises:
            UserError: the dataset or the settings do not fit the probe.
            NonFiniteLoss: training broke.
        """
        from probes.dense.preview import draw_panel
        from probes.runner.training import training_steps

        notes, cost, held, encoding = list[str](), dict[str, float](), frozenset[str](), None
        if context.settings.lr_grid:
            from probes.dense.lr_grid import choose

            choice = yield from choose(self, context, seat)
            context, held, notes, cost = choice.context, choice.held, choice.notes, choice.cost
            encoding = choice.encoding
        config = dense_config(self, context, held)
        if context.settings.cache != "none":
            from probes.features.precompute import provide

            more, encoding = provide(config, context, encoding)
            notes += more
        trained = yield from training_steps(config, context, description=self.title(context), seat=seat)
        (scores,) = trained.evaluators
        scored, expected = list(scores.per_image["image"]), [sample.image for sample in context.data.samples["val"]]
        if scored != expected:
            raise RuntimeError(f"{len(scored)} images were scored, not the {len(expected)} of the split in their order")
        speeds = {name: value for name, value in {**trained.cost, **cost}.items() if name.endswith("per_second")}
        sums = {name: value + cost.get(name, 0.0) for name, value in trained.cost.items()}  # of all heads of a grid
        costs = {**cost, **sums, **speeds}
        return TaskResult(
            metrics={name: trained.metrics[name] for name in self.metrics},
            per_image=scores.per_image,
            panel=draw_panel(trained.model, trained.val_dataset, self.kind, context.work_dir / "panel.png"),
            config=trained.config,
            cost=encoding.added_to(costs) if encoding else costs,
            notes=[*scores.notes, *notes],
        )

    def title(self, context: Context) -> str:
        """The task's name."""
        return f"{context.data.spec.name}/{self.name}"


def dense_config(
    probe: DenseProbe, context: Context, held_out: frozenset[str] = frozenset(), *, score_held_out: bool = False
) -> Config:
    """Config of model, data, optimizer, schedule and scores; ``probes.runner.training.resolved`` adds what all probes
    share.

    Args:
        held_out: training images to leave out.
        score_held_out: score them, not ``val``.
    """
    from mmengine.config import Config

    import probes.dense.metrics
    import probes.features.crops  # noqa: F401  both register what the config names, as the next two do
    from probes.dense.data import pipelines
    from probes.dense.heads import head_config

    settings, data, backbone = context.settings, context.data, context.backbone
    spec, classes = data.spec, data.classes
    check(probe, context)

    last = settings.layers == "last"
    channels = backbone.channels[-1:] if last else backbone.channels
    strides = backbone.strides[-1:] if last else backbone.strides
    mean, std = ([255 * value for value in values] for values in (backbone.data.mean, backbone.data.std))
    crop = math.ceil(settings.size / backbone.divisor) * backbone.divisor

    objective: dict[str, Any]
    scores: dict[str, Any]
    if probe.kind == "segmentation":
        # the mean over labelled pixels: ignored ones would only shrink the loss of a crop that has many
        loss = {"type": "CrossEntropyLoss", "use_sigmoid": False, "avg_non_ignore": True}
        objective = {"num_classes": len(classes), "ignore_index": spec.ignore_index, "loss_decode": loss}
        scores = {"type": "SegmentationScores", "ignore_index": spec.ignore_index}
    elif probe.kind == "depth":
        bounds = {"min_depth": spec.extra["min_depth"], "max_depth": spec.extra["max_depth"]}
        objective = {"loss_decode": {"type": "DepthObjective", **bounds, "balance": settings.silog_balance}}
        scores = {"type": "DepthScores", **bounds, "crop": spec.extra.get("crop")}
    else:
        objective = {"loss_decode": {"type": "NormalObjective"}}
        scores = {"type": "NormalScores", "crop": spec.extra.get("crop")}

    model = {
        "type": "DenseSegmenter" if probe.kind == "segmentation" else "DenseRegressor",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": mean,
            "std": std,
            "bgr_to_rgb": True,
            "size_divisor": backbone.divisor,
            "test_cfg": {"size_divisor": backbone.divisor},
        },
        "backbone": {
            "type": "FrozenBackbone",
            "precision": settings.precision,
            "out_indices": [-1] if last else None,
            **context.backbone_config,
        },
        "neck": {"type": "ResizeConcat", "strides": list(strides), "stride": settings.feature_stride},
        "decode_head": head_config(
            probe.name,
            in_channels=sum(channels),
            channels=settings.channels,
            dropout=settings.dropout,
            size=crop,
            stride=settings.feature_stride,
            **objective,
        ),
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }
    train, test = pipelines(
        spec, len(classes), settings.size, crop, settings.scale_range, settings.flip, mean, settings.views
    )

    def dataset(split: str, pipeline: list[dict[str, Any]], role: str) -> dict[str, Any]:
        usable = {sample.image for sample in data.samples[split]}
        if split == "train":
            usable = usable - held_out if role == "train" else usable & held_out
        listed = [sample.image for sample in spec.list_samples(data.root, split)]  # type: ignore[arg-type]
        return {
            "type": "DenseDataset",
            "dataset": spec.name,
            "root": str(data.root),
            "split": split,
            "exclude": [image for image in listed if image not in usable],
            "pipeline": pipeline,
            "test_mode": role == "score",
        }

    # importing it registers the dataset that the config names
    declared_in = getattr(spec.list_samples, "__module__", "probes.catalog")
    config = Config({
        "default_scope": "mmseg",
        "custom_imports": {"imports": [*OWN_MODULES, declared_in]},
        "model": model,
        "train_dataloader": {"batch_size": settings.batch_size, "dataset": dataset("train", train, "train")},
        # one by one: each image has a shape of its own
        "val_dataloader": {"batch_size": 1, "dataset": dataset("train" if score_held_out else "val", test, "score")},
        "val_evaluator": scores,
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": optimizer(settings)},
        "param_scheduler": schedule(settings),
        "train_cfg": {"max_iters": settings.max_iters},
    })  # fmt: skip
    if settings.cache == "none":
        return config
    from probes.dense.cached import cached

    return cached(config, settings.cache, settings.views, settings.flip, context.device)


def check(probe: DenseProbe, context: Context) -> None:
    """Raise ``UserError`` for what can be known to be wrong before any work is done."""
    settings, spec = context.settings, context.data.spec
    if probe.name != "linear" and settings.batch_size < 2:
        raise UserError(f"{probe.name} normalises pooled features over the batch: batch_size must be 2 or more")
    if probe.kind == "segmentation" and len(context.data.classes) < 2:
        raise UserError(f"dataset {spec.name!r} has {len(context.data.classes)} class; segmentation needs 2 or more")
    if missing := {"depth_scale", "min_depth", "max_depth"} - set(spec.extra) if probe.kind == "depth" else set():
        raise UserError(f"dataset {spec.name!r} does not declare {', '.join(sorted(missing))}; add them to its extra")


def optimizer(settings: DenseSettings) -> dict[str, Any]:
    """Config of the optimizer."""
    common = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    return {"type": "AdamW", **common} if settings.optimizer == "adamw" else {"type": "SGD", "momentum": 0.9, **common}


def schedule(settings: DenseSettings) -> list[dict[str, Any]]:
    """Configs of warm-up and decay, by iteration."""
    end = settings.max_iters
    warm = round(settings.warmup * end)
    warm = warm if warm >= 2 else 0  # mmengine's LinearLR divides by its length less one
    warmup: dict[str, Any] = {"type": "LinearLR", "start_factor": 1e-3, "by_epoch": False, "begin": 0, "end": warm}
    decay: dict[str, Any] = {"by_epoch": False, "begin": warm, "end": end}
    if settings.schedule == "poly":
        decay |= {"type": "PolyLR", "power": 0.9, "eta_min": 0.0}
    else:
        decay |= {"type": "CosineAnnealingLR", "T_max": end - warm, "eta_min": 0.0}
    return [warmup, decay] if warm else [decay]


for _kind, _settings in SETTINGS.items():
    for _name in PROBES:
        register_probe(DenseProbe(_name, _kind, _settings, METRICS[_kind]))
