"""DreamSim's fields: the triplets that are read, and distances and scores by features of pixels."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tests.protocols.sources import importing, stand_ins, with_modules

PROBE = "triplets/2afc"
TOLERANCE = {"distances": 1e-5, "scores": 1e-3}
FEATURES = {"class": "cls", "both": "cls_patch"}
SUBSETS = {"2AFC_imagenet": "test_imagenet", "2AFC_no_imagenet": "test_no_imagenet"}


def tokens(images: Tensor) -> Tensor:
    """(N, 3, 224, 224), 0 to 1, → a class token and 49 patches (N, 50, 3)."""
    patches = avg_pool2d(images, 32).flatten(2).transpose(1, 2)
    return torch.cat([images.amax(dim=(2, 3))[:, None], patches**2], dim=1)


def nights(folder: str) -> Path:
    from tests.probes.datasets.make import make_nights

    return make_nights(Path(folder), wrong=(0, 5))


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    stubs = stand_ins("peft")
    stubs["peft"].__version__ = "0.5.0"
    with importing(checkout), with_modules(stubs), tempfile.TemporaryDirectory() as name:
        from dataset.dataset import TwoAFCDataset  # type: ignore[import-not-found]
        from dreamsim.model import PerceptualModel  # type: ignore[import-not-found]
        from evaluation.score import score_nights_dataset  # type: ignore[import-not-found]

        class Model(PerceptualModel):  # type: ignore[misc]
            def __init__(self, features: str) -> None:
                torch.nn.Module.__init__(self)
                self.feat_type_list = [features]

            def embed(self, images: Tensor) -> Tensor:
                both = self.feat_type_list == ["cls_patch"]
                return tokens(images) if both else tokens(images)[:, 0]

        root = nights(name)
        sets = {
            key: TwoAFCDataset(str(root), part) for key, part in {"2AFC": "test", **SUBSETS}.items()
        }
        distances, scores = {}, {}
        for ours, theirs in FEATURES.items():
            model = Model(theirs)
            distances[ours] = [
                [model(row[0][None], row[1 + right][None]).item() for right in (0, 1)]
                for row in sets["2AFC"]
            ]
            scores[ours] = {
                key: 100 * score_nights_dataset(model, torch.utils.data.DataLoader(part, 2), "cpu")
                for key, part in sets.items()
            }
            scores[ours] = {key: each.item() for key, each in scores[ours].items()}
        table = sets["2AFC"].csv
        rows = table[["ref_path", "left_path", "right_path", "right_vote"]].to_numpy().tolist()
    return {PROBE: {"triplets": rows, "distances": distances, "scores": scores}}


def suite() -> dict[str, dict[str, Any]]:
    from backbones.backbone import DataConfig
    from probes.matching import likeness
    from probes.registry import find_task
    from tests.probes.whole_images import Colours, context

    class Pixels(Colours):
        token_blocks = 1

        def __init__(self) -> None:
            super().__init__()
            self.data = DataConfig((224, 224), (0.0,) * 3, (1.0,) * 3, "bicubic", 1.0)

        def read_tokens(self, images: Tensor, layers: Any) -> list[tuple[Tensor, Tensor]]:
            return [(tokens(images)[:, 0], tokens(images)[:, 1:])]

    spec, probe = find_task("nights/2afc")
    distances, scores, rows = {}, {}, []
    with tempfile.TemporaryDirectory() as name:
        root = nights(name)
        for features in FEATURES:
            task = context(probe, spec, root, backbone=Pixels(), size=224, features=features)
            samples = task.data.samples["val"]
            rows = [
                [each.image, each.target.left, each.target.right, each.target.right_share]
                for each in samples
            ]
            paths = [path for row in rows for path in row[:3]]
            index = np.arange(len(paths)).reshape(-1, 3)
            near = likeness.cosines(likeness.encode(task, paths), index)
            distances[features] = 1 - np.stack(near, axis=1)
            scores[features] = probe.run(task).metrics
    return {PROBE: {"triplets": rows, "distances": distances, "scores": scores}}
