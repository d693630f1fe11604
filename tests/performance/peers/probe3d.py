"""probe3d's depth probe; images are not enlarged, which would need albumentations."""

from __future__ import annotations

from pathlib import Path

from tests.performance.beside import (
    SIZE,
    TOY,
    Evaluate,
    Size,
    checkout,
    compare_sides,
    dense_files,
    import_from,
    our_probe,
    patches,
)
from tests.performance.harness import Result, bench


@bench(size=TOY, n=1)
def probe3d(size: Size = SIZE, n: int = 3) -> list[Result]:
    """Error of a DPT head on changed colours."""
    source, sides = checkout("probe3d"), (ours, theirs)
    title = f"probe3d's depth probe, {epochs(size)} epochs"
    return compare_sides(title, "rmse in m", "depth", sides, size, n, source)


def epochs(size: Size) -> int:
    return max(1, size.steps * size.batch // size.images)


def ours(data: Path, source: Path, size: Size) -> Evaluate:
    from tests.probes.tiny_dense import prepared

    return our_probe(
        "nyu-depth/dpt-probe3d",
        "probe3d",
        prepared(data, "depth"),
        size.model,
        "rmse",
        size=size.side,
        crop=(size.side, size.side),
        train_area=(),
        test_area=(),
        enlarge=1.0,
        epochs=float(epochs(size)),
        batch_size=size.batch,
        channels=size.width,
    )


def theirs(data: Path, source: Path, size: Size) -> Evaluate:
    import numpy as np
    import torch
    from PIL import Image
    from torch.optim.lr_scheduler import LambdaLR

    import backbones
    from tests.protocols import sources

    import_from(source)
    patches.enter_context(sources.probe3d())
    if not torch.cuda.is_available():
        patches.enter_context(sources.on_cpu())
    import train_depth
    from evals.datasets.utils import get_nyu_transforms
    from evals.models.probes import DepthHead
    from evals.utils.losses import DepthLoss
    from evals.utils.optim import cosine_decay_linear_warmup

    backbone = backbones.create(size.model, seed=0)
    mean, std = (
        torch.tensor(each)[:, None, None] for each in (backbone.data.mean, backbone.data.std)
    )

    class Images(torch.utils.data.Dataset):
        def __init__(self, split: str) -> None:
            self.files = dense_files(data, split)
            options = {"rotateflip": False, "additional_targets": {}}
            self.transform, _ = get_nyu_transforms(
                "None", (size.side, size.side), split == "train", **options
            )

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            image, depth = (np.asarray(Image.open(path)) for path in self.files[index])
            metres = torch.from_numpy(depth.astype(np.float32) / 1000)[None]
            return {"image": (self.transform(image) - mean) / std, "depth": metres}

    def maps(images: torch.Tensor) -> list[torch.Tensor]:
        return list(backbone(images))

    def evaluate() -> float:
        torch.manual_seed(0)
        loaders = [
            torch.utils.data.DataLoader(Images(split), size.batch) for split in ("train", "val")
        ]
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
