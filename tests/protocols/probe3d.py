"""probe3d's depth and normals of NYU Depth v2 and its correspondence of views, by its code and by
this suite."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cliptex_common.device import isolated_rng, prefers_bf16
from probes.datasets.unpack import millimetres
from probes.dense.losses import TaskObjective, TaskScores
from probes.dense.pipelines import LoadGroundTruth
from probes.dense.settings import in_iterations, native_stride, reads_class_token, round_up
from probes.registry import DATASETS
from probes.train.frozen_backbone import FrozenBackbone
from probes.train.sampling import SeededSamples
from tests.protocols import dense, probe3d_views, sources
from tests.protocols.dense import photograph, random, seeded, summary
from tests.protocols.probe3d_source import (
    BACKBONES,
    DEPTHS,
    EDGES,
    FRAME,
    HIDDEN,
    MAPS,
    NORMALS,
    RANGE,
    TASKS,
    UNROUNDED,
    VIT,
    WIDTH,
    depth_frames,
    frame_depth,
    normal_frames,
    row_ends,
)
from tests.protocols.probe3d_source import source as trained_source

TOLERANCE = {"losses": 2e-4, "weights after ten steps": 2e-4, "head output": 2e-5}
TOLERANCE |= {"colours": 1e-3, "scores": 1e-3}
HEAD_PRECISION = "bfloat16" if prefers_bf16("cuda") else "float32"  # on a GPU


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    with sources.probe3d():
        views = probe3d_views.source(checkout)
    return trained_source(checkout) | views


def suite() -> dict[str, dict[str, Any]]:
    return heads("probe3d") | probe3d_views.suite()


def heads(protocol: str) -> dict[str, dict[str, Any]]:
    """What the suite makes of a preset for the head."""
    return {kind: _suite(kind, protocol) for kind in TASKS}


def _suite(kind: str, protocol: str) -> dict[str, Any]:
    is_depth, task = kind.startswith("depth"), TASKS[kind]
    config = dense.preset_config(protocol, task)
    preset = dense.preset_settings(protocol, task)
    settings = in_iterations(preset, 795)
    head = _head(config)
    output = head.eval()((torch.cat(MAPS[0], dim=1),))
    targets = DEPTHS if is_depth else [n * (d > 0) for n, d in zip(NORMALS, DEPTHS, strict=True)]
    field = "gt_depth_map" if is_depth else "gt_normal_map"
    packed = [dense.samples(field, target) for target in targets]
    short = dense.preset_settings(protocol, task, epochs=0.0, **dense.SHORT)
    features = [(torch.cat(maps, dim=1),) for maps in MAPS]
    losses = dense.trained(head, short, features, packed)
    with isolated_rng(0):
        untrained = _head(config, 64)  # the number of channels does not change them
        untrained.init_weights()
    plain = dense.plain_settings(settings) | {"channels": settings.channels}
    order = SeededSamples(range(795), 8, shuffle=settings.shuffle)  # type: ignore[arg-type]
    border = round_up(480, 14) - 480
    names = ("optimizer", "rate", "beta 2", "decay", "clip", "batch", "channels")
    precision = {"fp32": "float32", "bf16": "bfloat16"}[settings.precision]
    fields = {
        **dense.curves(in_iterations(preset, 800)),
        "settings": {name: plain[name] for name in names},
        "data": DATASETS[task.partition("/")[0]].extra["split"],
        "iterations": settings.max_iters,
        "order": [order.index(number) for number in range(10)],
        **_images(config),
        "mask": head.loss_decode.task.valid(torch.tensor(RANGE)).tolist()
        if is_depth
        else _mask(config),
        **_tokens(settings),
        "padding": [0, border, 0, border],
        "initial weights": dense.spread(untrained.conv_seg),
        "head output": summary(output),
        "losses": losses,
        "weights after ten steps": dense.weights(_parameters(head)),
        "mean colour": "the backbone's",
        "head precision": HEAD_PRECISION,
        "backbone precision": precision,
        "seed": 0,
    }
    return fields | (_depth_scores(config) if is_depth else _normal_scores(config))


def _head(config: Any, hidden: int = HIDDEN) -> Any:
    built = dense.head(config, 4 * WIDTH, map_channels=(WIDTH,) * 4, channels=hidden)
    dense.fill(_parameters(built))
    return built


def _parameters(head: Any) -> list[Tensor]:
    parts = [*head.project, *head.before, *head.after, head.mix, head.conv_seg]
    return [tensor for part in parts for tensor in part.parameters()]


def _images(config: Any) -> dict[str, Any]:
    colours = dense.part_of(config, "train", "ColorJitter")
    depth = frame_depth()
    areas = []
    for split in ("train", "val"):
        area = dense.part_of(config, split, "ReadArea")
        results = dense.transform(area, np.zeros((*FRAME, 3), np.uint8), depth)
        shape = results["img"].shape
        areas.append([[shape[2], *shape[:2]], row_ends(torch.from_numpy(results["gt_seg_map"]))])
    enlarge, columns = dense.part_of(config, "train", "Enlarge"), np.arange(120, dtype=np.uint8)
    image, shares = np.broadcast_to(columns[:, None], (120, 120, 3)), []
    for _ in seeded(400):
        seen = dense.transform(enlarge, image)["img"]
        shares.append(((int(seen.max()) - int(seen.min()) + 1) / 120) ** 2)
    changed = [share for share in shares if share < 1]
    enlarged = [len(changed) / len(shares), min(changed), max(changed)]
    return {
        "area": areas,
        "enlarge": [round(value, 1) for value in enlarged],
        "colours": [
            summary(dense.transform(colours, photograph(8, 9))["img"], 20) for _ in seeded()
        ],
    }


def _mask(config: Any) -> list[bool]:
    """Which pixels of a normal map of known normals and the depths ``RANGE`` count."""
    with tempfile.TemporaryDirectory() as folder:
        depth = millimetres(np.array([RANGE]))
        normals = np.full((1, len(RANGE), 3), (255, 128, 128), np.uint8)
        for name, values in (("annotations", depth), ("normals", normals)):
            Path(folder, name).mkdir()
            cv2.imwrite(f"{folder}/{name}/image.png", values)
        options = dense.part_of(config, "val", "LoadGroundTruth")
        del options["type"]
        loaded = LoadGroundTruth(**options).read(f"{folder}/normals/image.png")
    return loaded[0].any(axis=1).tolist()


def _stored(config: Any) -> list[float]:
    """Depths to test on that are no multiples of 1 mm, as they are stored and read."""
    options = dense.part_of(config, "val", "LoadGroundTruth")
    del options["type"]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/image.png"
        Image.fromarray(millimetres(np.array([UNROUNDED]))).save(path)
        return LoadGroundTruth(**options).read(path)[0].tolist()


def _tokens(settings: Any) -> dict[str, Any]:
    frozen = FrozenBackbone(name=VIT, seed=0, class_token=True)
    maps = frozen(random(1, 3, 56, 70))
    named = {
        name: SimpleNamespace(name=here, architecture="", weights=SimpleNamespace(source=""))
        for name, here in BACKBONES.items()
    }
    return {
        "blocks": list(frozen.backbone.data.layers),
        "tokens": [[list(each.shape), *summary(each, 10)] for each in maps],
        "class tokens": {name: reads_class_token(settings, each) for name, each in named.items()},
        "strides": native_stride((4, 8, 16, 32)),
    }


def _depth_scores(config: Any) -> dict[str, Any]:
    names, options = ("delta1", "delta2", "delta3", "rmse"), config.val_evaluator.to_dict()
    predicted, target = depth_frames()
    scores = [_scored(TaskScores, options, names, "depth", each) for each in (target, 0 * target)]
    edges = torch.tensor(EDGES).view(-1, 1, 1, 1).expand(-1, 1, *FRAME)
    perfect = [
        _scored(TaskScores, options, names, "depth", each[None])(each[None]) for each in edges
    ]
    return {
        "scores": scores[0](predicted),
        "scale-invariant scores": "none",
        "scores without valid pixels": scores[1](predicted),
        "scored pixels": [delta > 0 for delta, *_ in perfect],
        "test depth": _stored(config),
    }


def _normal_scores(config: Any) -> dict[str, Any]:
    names = tuple(f"normal_image_{name}" for name in ("11.25", "22.5", "30", "rmse"))
    options = config.val_evaluator.to_dict()
    predicted, target, mask = normal_frames()
    scores = [
        _scored(TaskScores, options, names, "normal", target * valid)
        for valid in (mask, mask & False)
    ]
    up = torch.tensor([0.0, 0.0, 1.0, 0.0]).view(1, 4, 1, 1)
    return {
        "scores": scores[0](predicted),
        "scores without valid pixels": scores[1](predicted),
        "loss of small angles": TaskObjective("normals", uncertainty=True)(up, up[:, :3]).item(),
    }


def _scored(
    kind: Any, options: dict[str, Any], names: Sequence[str], field: str, targets: Tensor
) -> Callable[[Tensor], list[float]]:
    def score(predictions: Tensor) -> list[float]:
        metric = kind(**{name: value for name, value in options.items() if name != "type"})
        for number, pair in enumerate(zip(predictions, targets, strict=True)):
            keys = f"pred_{field}_map", f"gt_{field}_map"
            maps = {key: {"data": each} for key, each in zip(keys, pair, strict=True)}
            metric.process(None, [{"image": str(number), **maps}])
        values = metric.compute_metrics(metric.results)
        return [values[name] for name in names]

    return score
