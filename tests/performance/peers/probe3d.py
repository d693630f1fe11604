"""probe3d's depth probe; images are not enlarged, which would need albumentations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.performance import beside
from tests.performance.harness import Result, bench


@bench(size=beside.TOY, n=1)
def probe3d(size: beside.Size = beside.SIZE, n: int = 3) -> list[Result]:
    """Error of a DPT head on changed colours."""
    sides = ours, theirs
    title = f"probe3d's depth probe, {epochs(size)} epochs"
    return beside.compare_sides(title, "rmse in m", "depth", sides, size, n, "probe3d")


def epochs(size: beside.Size) -> int:
    return max(1, size.steps * size.batch // size.images)


def ours(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    return beside.our_probe(
        "nyu-depth/dpt-probe3d",
        "probe3d",
        "rmse",
        data,
        size,
        size=size.side,
        crop=(size.side, size.side),
        train_area=(),
        test_area=(),
        enlarge=1.0,
        epochs=float(epochs(size)),
        batch_size=size.batch,
        channels=size.width,
    )


def theirs(data: Path, source: Path, size: beside.Size) -> beside.Evaluate:
    import numpy as np
    import torch
    from torch.optim.lr_scheduler import LambdaLR

    import backbones
    from tests.protocols import sources

    beside.import_from(source)
    beside.lasting.enter_context(sources.probe3d())
    if not torch.cuda.is_available():
        beside.lasting.enter_context(sources.on_cpu())
    import train_depth
    from evals.datasets.utils import get_nyu_transforms
    from evals.models.probes import DepthHead
    from evals.utils.losses import DepthLoss
    from evals.utils.optim import cosine_decay_linear_warmup

    backbone = backbones.create(size.model, seed=0)
    mean, std = (
        torch.tensor(each)[:, None, None] for each in (backbone.data.mean, backbone.data.std)
    )

    def loader(split: str) -> Any:
        options = {"rotateflip": False, "additional_targets": {}}
        transform, _ = get_nyu_transforms(
            "None", (size.side, size.side), split == "train", **options
        )

        def pair(image: Any, depth: Any) -> dict[str, torch.Tensor]:
            metres = torch.from_numpy(np.asarray(depth).astype(np.float32) / 1000)[None]
            return {"image": (transform(np.asarray(image)) - mean) / std, "depth": metres}

        return torch.utils.data.DataLoader(beside.Dense(data, split, pair), size.batch)

    def maps(images: torch.Tensor) -> list[torch.Tensor]:
        return list(backbone(images))

    def evaluate() -> float:
        torch.manual_seed(0)
        loaders = [loader(split) for split in ("train", "val")]
        head = DepthHead(list(backbone.channels), "dpt", hidden_dim=size.width, kernel_size=3)
        optimizer = torch.optim.AdamW([{"params": head.parameters(), "lr": 5e-4}])
        steps = epochs(size) * len(loaders[0])
        curve = lambda step: cosine_decay_linear_warmup(step, steps, 0.15 * steps)
        schedule, loss = LambdaLR(optimizer, curve), DepthLoss()
        train_depth.train(
            maps,
            head,
            loaders[0],
            optimizer,
            schedule,
            epochs(size),
            detach_model=True,
            loss_fn=loss,
            rank="cuda" if torch.cuda.is_available() else "cpu",
        )
        _, scores = train_depth.validate(maps, head, loaders[1], loss)
        return float(scores["rmse"])

    return evaluate
