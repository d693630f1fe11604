"""VisBench's linear probes, by its code and by this suite."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import backbones
from cliptex_common.device import prefers_bf16
from probes.dense.losses import TaskScores
from probes.dense.task import cropped
from probes.image_level.classification import ranks
from probes.image_level.encode import encoder
from probes.image_level.linear import Samples, train_linear, zero_heads
from probes.train.frozen_backbone import FrozenBackbone
from tests.protocols import dense, sources
from tests.protocols.dense import CHANNELS, CLASSES, IMAGES, depths, labels, random, summary

TASKS = {
    "depth/linear": ("nyu-depth/linear", 795),
    "normals/linear": ("nyu-normal/linear", 795),
    "segmentation/linear": ("voc/linear", 1464),
}
CLASSIFICATION = "classification/linear"
SIDE, FRAME, STEPS = 24, (480, 640), 5  # steps of one of two passes
VIT, CONVNEXT = "random/timm/vit_tiny_patch16_224", "random/timm/convnext_atto"
MAPS = random(STEPS * IMAGES, CHANNELS, 6, 6)
TARGETS = {
    "depth": depths(STEPS * IMAGES, 1, SIDE, SIDE),
    "normals": F.normalize(random(STEPS * IMAGES, 3, SIDE, SIDE, seed=4)),
    "segmentation": labels(STEPS * IMAGES, SIDE, SIDE),
}
FIELDS = {"depth": "depth_map", "normals": "normal_map", "segmentation": "sem_seg"}
METRICS = {  # theirs → this suite's
    "depth": {"d1": "delta1", "d2": "delta2", "d3": "delta3", "rmse": "rmse", "abs_rel": "abs_rel"},
    "normals": {"mean": "normal_image_mean", "rmse": "normal_image_rmse"}
    | {"d1": "normal_image_11.25", "d2": "normal_image_22.5", "d3": "normal_image_30"},
    "segmentation": {"miou": "mIoU", "mean_acc": "mAcc", "pixel_acc": "aAcc"},
}
SHARES = {"d1", "d2", "d3", "miou", "mean_acc", "pixel_acc"}
EDGES = torch.tensor([0.0, 0.0005, 0.001, 5.0, 10.0, 10.5]).view(-1, 1, 1, 1)
FEATURES, KINDS = random(10, 6, seed=7), torch.arange(10) % 3
SHORT = {"epochs": 4, "batch_size": 4}
TOLERANCE = {"map": 2e-5, "losses": 2e-4, "weights": 2e-4, "head output": 2e-5, "scores": 2e-3}


class Recorded(torch.optim.AdamW):
    """Notes its rate at each step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rates: list[float] = []
        LAST.append(self)

    def step(self, closure: Any = None) -> Any:
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(closure)


LAST: list[Recorded] = []


@contextmanager
def in_order() -> Iterator[None]:
    """Training takes samples in their order by optimizers that are noted in ``LAST``; linear layers
    begin with zeros."""

    def zeros(*shape: int) -> nn.Linear:
        layer = linear(*shape)
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
        return layer

    linear = nn.Linear
    with (
        patch.object(torch, "randperm", lambda count, **_: torch.arange(count)),
        patch.object(torch.optim, "AdamW", Recorded),
        patch.object(nn, "Linear", zeros),
    ):
        yield


def frames(kind: str) -> tuple[Tensor, Tensor]:
    """Predictions and ground truth of three frames, of a class that none has, too."""
    if kind == "segmentation":
        target = labels(3, 1, *FRAME, classes=CLASSES - 1)
        return labels(3, 1, *FRAME, classes=CLASSES - 1, ignored=0, seed=5), target
    if kind == "depth":
        target = depths(3, 1, *FRAME)
        return (target + 0.5 * random(*target.shape, seed=3)).clamp(0.1, 10), target
    target = F.normalize(random(3, 3, *FRAME, seed=4))
    target = target * (depths(3, 1, *FRAME) > 0)
    return target + 0.3 * random(*target.shape, seed=5), target


def ramp() -> np.ndarray:
    """A frame that grows by 4 a column from where its central square begins and to where it ends,
    and shrinks after its middle."""
    columns = np.arange(FRAME[1])
    values = 4 * np.minimum(columns - 70, 570 - columns)
    return np.broadcast_to(values.clip(0, 255).astype(np.uint8)[None, :, None], (*FRAME, 3)).copy()


def picture() -> np.ndarray:
    return np.asarray(Image.fromarray(dense.photograph(30, 30)).resize((300, 300)))


def ends(image: Any) -> list[float]:
    return np.asarray(image)[100, [0, -1], 0].tolist()


# ---------------------------------------------------------------- the source


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    with sources.importing(checkout):
        fields = {probe: _source(probe, images) for probe, (_, images) in TASKS.items()}
        return fields | {CLASSIFICATION: _source_classification()}


def _task(kind: str, **options: Any) -> Any:
    from visbench.tasks.high_level.semantic_segmentation import SemanticSegmentationTask
    from visbench.tasks.mid_level.depth import DepthTask
    from visbench.tasks.mid_level.surface_normal import SurfaceNormalTask

    if kind == "segmentation":
        return SemanticSegmentationTask(CLASSES, device="cpu", **options)
    kinds = {"depth": DepthTask, "normals": SurfaceNormalTask}
    return kinds[kind](device="cpu", **options)


def _source(probe: str, images: int) -> dict[str, Any]:
    from visbench.tasks import dense_base

    kind = probe.partition("/")[0]
    targets = TARGETS[kind].where(TARGETS[kind] != 255, -1)
    long = _task(kind)
    with torch.random.fork_rng(), patch.object(torch.optim, "AdamW", Recorded):
        untrained = long._build_head(256, SIDE)
        sizes, order = [], []

        def noted(maps: Tensor) -> Tensor:  # the schedule alone is of interest
            sizes.append(len(maps))
            order.extend(maps.flatten().long().tolist())
            return long.head.proj.bias.sum()

        long._forward, long._loss = noted, lambda value, target: value
        few = targets[:1, ..., :2, :2].expand(images, *targets.shape[1:-2], 2, 2)
        long.fit({"dense": torch.arange(float(images)).view(-1, 1, 1, 1)}, few)
    optimizer = LAST.pop()
    (group,) = optimizer.param_groups
    task = _task(kind, epochs=2, batch_size=IMAGES, warmup_epochs=0.8)
    losses, build, loss, load = [], task._build_head, task._loss, task._loader

    def filled(*shape: Any) -> Any:
        head = build(*shape)
        dense.fill(dense.by_shape(head))
        return head

    def recorded(*pair: Tensor) -> Tensor:
        value = loss(*pair)
        losses.append(value.item())
        return value

    task._build_head, task._loss = filled, recorded
    task._loader = lambda source, shuffle: load(source, False)
    task.head = filled(CHANNELS, SIDE)
    output = task._forward(MAPS[:IMAGES])
    task.fit({"dense": MAPS}, targets)
    steps = len(sizes) // 10
    return {
        "rates": summary(optimizer.rates),
        "settings": {
            "optimizer": "adamw",
            "rate": group["initial_lr"],
            "beta 2": group["betas"][1],
            "decay": group["weight_decay"],
            "clip": "clip" if "clip_grad" in inspect.getsource(dense_base) else "never",
            "batch": sizes[0],
            "iterations": len(sizes),
        },
        "last batch": sizes[steps - 2 : steps],
        "order": dense.order_of_passes(order, images),
        "initial weights": dense.spread(untrained.proj),
        "head output": summary(output[:, :3] if kind == "normals" else output),
        "losses": losses,
        "weights": dense.weights(dense.by_shape(task.head)),
        "head precision": "bf16" if "autocast" in inspect.getsource(dense_base) else "float32",
        "map": summary(_features(VIT)["dense"]),
        **_source_images(),
        **_source_scores(kind),
    }


def _source_images() -> dict[str, Any]:
    from visbench.data.dense import DenseFolderDataset

    with tempfile.TemporaryDirectory() as folder:
        for part in ("images", "depths"):
            Path(folder, part).mkdir()
            for name, pixels in {"a": picture(), "b": ramp()}.items():
                Image.fromarray(pixels).save(f"{folder}/{part}/{name}.png")
        columns = torch.arange(300.0).expand(300, 300)
        data = DenseFolderDataset(folder, target_loader=lambda path: columns)
        return {
            "image": summary(data[0][0], 20),
            "central square": ends(data[1][0]),
            "scored size": list(data.target(1).shape),
            "nearest pixels": summary(data.target(0)[0], 20),
        }


def _source_scores(kind: str) -> dict[str, Any]:
    from visbench.data.dense import DenseFolderDataset
    from visbench.metrics import dense as metrics

    predicted, target = (each[..., 80:-80] for each in frames(kind))
    if kind == "segmentation":
        target = target.where(target != 255, -1)
        matrix = metrics.confusion_matrix(predicted, target, CLASSES)
        return {"scores": _listed(kind, metrics.metrics_from_confusion(matrix))}
    score = metrics.depth_metrics if kind == "depth" else metrics.surface_normal_metrics
    fields = {
        "scores": _listed(kind, score(predicted, target)),
        "scores without valid pixels": _listed(kind, score(predicted, 0 * target)),
    }
    if kind == "normals":
        from visbench.tasks.mid_level.surface_normal import angular_loss

        up = torch.tensor([0.0, 0.0, 1.0, 0.0]).view(1, 4, 1, 1)
        return fields | {"loss of small angles": angular_loss(up, up[:, :3]).item()}
    with tempfile.TemporaryDirectory() as folder:
        for part in ("images", "depths"):
            Path(folder, part).mkdir()
            Image.fromarray(picture()).save(f"{folder}/{part}/a.png")
        capped = [
            DenseFolderDataset(
                folder,
                max_target=10.0,
                target_loader=lambda path, each=each: each.flatten().expand(9, 9),
            ).target(0)[:1, :1]
            for each in EDGES
        ]
    valid = [score(each[None], each[None])["d1"] > 0 for each in capped]
    return fields | {"learned pixels": valid, "scored pixels": valid}


def _listed(kind: str, scores: dict[str, float]) -> list[float]:
    return [scores[name] * (100 if name in SHARES else 1) for name in METRICS[kind]]


def _features(name: str) -> Any:
    from visbench.backbones.timm_backbone import TimmBackbone

    model = backbones.create(name, seed=0).model
    with patch("timm.create_model", return_value=model):
        built = TimmBackbone(model_name=name.rpartition("/")[2], device="cpu")
    return built.extract_features(random(2, 3, 224, 224))


def _source_classification() -> dict[str, Any]:
    from visbench.backbones.timm_backbone import DEFAULT_CROP_PCT, eval_config
    from visbench.metrics.classification import top_k_accuracy
    from visbench.tasks.high_level.scene_classification import SceneClassificationTask

    defaults = SceneClassificationTask(device="cpu")
    task = SceneClassificationTask(device="cpu", **SHORT)
    with in_order():
        task.fit(FEATURES, KINDS)
    assert task.head is not None
    ratio = eval_config({}, None, DEFAULT_CROP_PCT)["crop_pct"]
    with torch.random.fork_rng():
        untrained = dense.spread(nn.Linear(256, 10))
    scores = top_k_accuracy(random(40, 9), torch.arange(40) % 9)
    return {
        "length": [defaults.epochs, defaults.batch_size],
        "optimizer": _optimizer(LAST.pop()),
        "initial weights": untrained,
        "weights": [*task.head.weight.T.flatten().tolist(), *task.head.bias.tolist()],
        "embedding": summary(_features(VIT)["pooled"]),
        "embedding of ConvNeXt": summary(_features(CONVNEXT)["pooled"]),
        "image": [round(224 / ratio), 224],
        "scores": [100 * scores["top1"], 100 * scores["top5"]],
    }


def _optimizer(optimizer: Recorded) -> dict[str, Any]:
    (group,) = optimizer.param_groups
    names = ("betas", "eps", "weight_decay")
    return {name: group[name] for name in names} | {
        "rates": optimizer.rates,
        "decaying": len(group["params"]),
    }


# ---------------------------------------------------------------- the suite


def suite() -> dict[str, dict[str, Any]]:
    fields = {probe: _suite(probe, *pair) for probe, pair in TASKS.items()}
    return fields | {CLASSIFICATION: _suite_classification()}


def _suite(probe: str, task: str, images: int) -> dict[str, Any]:
    kind = probe.partition("/")[0]
    settings, config = (
        dense.preset_settings("visbench", task),
        dense.preset_config("visbench", task),
    )
    options = {"num_classes": CLASSES} if kind == "segmentation" else {}
    head = dense.head(config, **options)
    short = dense.preset_settings("visbench", task, max_iters=10, warmup=4.0, warmup_start=0.25)
    inputs = [(maps,) for maps in MAPS.split(IMAGES)] * 2
    field = f"gt_{FIELDS[kind]}"
    packed = [dense.samples(field, each) for each in TARGETS[kind].split(IMAGES)] * 2
    raw = F.interpolate(head(inputs[0]), (SIDE, SIDE), mode="bilinear")
    output = raw if kind == "segmentation" else head.objective.decode(raw)
    losses = dense.trained(head, short, inputs, packed)
    plain = dense.plain_settings(settings)
    assert not plain.pop("flip") and plain.pop("crop") == [224, 224]
    (last,) = FrozenBackbone(name=VIT, seed=0, out_indices=[-1])(random(2, 3, 224, 224))
    return {
        "rates": dense.curves(settings)["rates"],
        "settings": plain,
        "last batch": [settings.batch_size] * 2,
        "order": dense.order_of_passes(dense.order(settings), 7),
        "initial weights": dense.initial_weights(config),
        "head output": summary(output),
        "losses": losses,
        "weights": dense.weights(dense.by_shape(head.decode_head)),
        "head precision": "bf16" if prefers_bf16("cuda") else "float32",
        "map": summary(last),
        **_suite_images(config),
        **_suite_scores(kind, config, head),
    }


def _suite_images(config: Any) -> dict[str, Any]:
    area, resize = (dense.part_of(config, "val", kind) for kind in ("ReadArea", "PillowResize"))
    train = dense.part_of(config, "train", "RandomResize")
    assert dense.part_of(config, "train", "ReadArea") == area
    square = dense.transform(resize, dense.transform(area, ramp())["img"])["img"]
    columns = np.broadcast_to(np.arange(300, dtype=np.float32), (300, 300))
    seen = dense.transform(train, picture(), columns)
    assert (seen["img"] == dense.transform(resize, picture())["img"]).all()
    return {
        "image": summary(seen["img"], 20),
        "central square": ends(square),
        "scored size": list(cropped(torch.zeros(FRAME), config.val_evaluator.crop).shape),
        "nearest pixels": summary(seen["gt_seg_map"][0], 20),
    }


def _suite_scores(kind: str, config: Any, head: Any) -> dict[str, Any]:
    options = {key: value for key, value in config.val_evaluator.items() if key != "type"}

    def score(predictions: Tensor, targets: Tensor) -> list[float]:
        metric = TaskScores(**options)
        metric.dataset_meta = {"classes": tuple(map(str, range(CLASSES)))}
        for number, pair in enumerate(zip(predictions, targets, strict=True)):
            keys = f"pred_{FIELDS[kind]}", f"gt_{FIELDS[kind]}"
            maps = {key: {"data": each} for key, each in zip(keys, pair, strict=True)}
            metric.process(None, [{"image": str(number), **maps}])
        values = metric.compute_metrics(metric.results)
        return [values[name] for name in METRICS[kind].values()]

    predicted, target = frames(kind)
    fields = {"scores": score(predicted, target)}
    if kind == "segmentation":
        return fields
    fields["scores without valid pixels"] = score(predicted, 0 * target)
    if kind == "normals":
        up = torch.tensor([0.0, 0.0, 1.0, 0.0]).view(1, 4, 1, 1)
        return fields | {"loss of small angles": head.objective(up, up[:, :3]).item()}
    maps = EDGES.expand(-1, 1, *FRAME)
    return fields | {
        "learned pixels": head.objective.task.valid(EDGES).flatten().tolist(),
        "scored pixels": [score(each[None], each[None])[0] > 0 for each in maps],
    }


def _suite_classification() -> dict[str, Any]:
    settings = dense.preset_settings("visbench", "places365/linear")
    short = dense.preset_settings("visbench", "places365/linear", **SHORT)
    samples = Samples(FEATURES, KINDS, 3)
    heads = zero_heads(samples, 1, short, torch.device("cpu"))
    with in_order():
        for _ in train_linear(heads, samples, short.grid, short, 0):
            pass
    vit, convnext = (backbones.create(name, seed=0) for name in (VIT, CONVNEXT))
    with torch.no_grad():
        embeddings = [
            summary(encoder(each, settings.encoding("cpu"))(random(2, 3, 224, 224)))
            for each in (vit, convnext)
        ]
    rank = ranks(random(40, 9), torch.arange(40) % 9)
    initial = zero_heads(samples, 1, short, torch.device("cpu"))
    return {
        "length": [settings.epochs, settings.batch_size],
        "optimizer": _optimizer(LAST.pop()),
        "initial weights": [initial.weights[0].std(), initial.weights[0].max(), 0.0],
        "weights": [*heads.weights[0].flatten().tolist(), *heads.biases[0].tolist()],
        "embedding": embeddings[0],
        "embedding of ConvNeXt": embeddings[1],
        "image": [int(settings.size / vit.data.crop_pct), settings.size],
        "scores": [100 * (rank < k).double().mean().item() for k in (1, 5)],
    }
