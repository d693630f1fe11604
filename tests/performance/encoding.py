"""Images a second from JPEG files, against a bare ``forward`` of the same model on tensors that
exist already."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.performance.harness import Result, alternate, bench
from tests.performance.toys import jpegs

# images a second at 224 px on an H100 in 16 bits, as timm's public benchmarks have them
PUBLIC = {
    "random/timm/vit_base_patch16_224": 7_300,
    "random/timm/vit_large_patch16_224": 2_500,
}
SMALL = ("efficientnet-lite0", "random/timm/vit_small_patch16_224")


@bench(images=4, batch_size=2, models=["random/timm/test_vit"], n=1)
def encoding(
    images: int = 0, batch_size: int = 0, models: Sequence[str] = (), n: int = 0
) -> list[Result]:
    """``probes.image_level.encode.ImageViews`` (decode, resize, normalise, forward) against
    forward alone; on a GPU in bf16, with loading processes on all cores."""
    import torch

    import backbones
    from probes.base import EncodeContext
    from probes.image_level.encode import ImageViews, autocast
    from probes.image_level.settings import Encoding

    device, workers = torch.device("cpu"), 0
    count, how = images or 192, Encoding(batch_size=batch_size or 32)
    if is_gpu := torch.cuda.is_available():
        device, workers = torch.device("cuda"), os.cpu_count() or 1
        count, how = images or 8_192, Encoding(precision="bf16", batch_size=batch_size or 256)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        paths = jpegs(Path(folder), count)
        for name in models or (PUBLIC if is_gpu else SMALL):
            backbone = backbones.create(name).to(device)
            batch = torch.randn(how.batch_size, 3, *backbone.data.size, device=device)

            def ours(backbone: backbones.Backbone = backbone) -> float:
                started = time.perf_counter()
                views = ImageViews(EncodeContext(device, workers), backbone, paths, how)
                torch.cat([features.cpu() for features in views.tensors()])
                return count / (time.perf_counter() - started)

            def bare(backbone: backbones.Backbone = backbone, batch: torch.Tensor = batch) -> float:
                started = time.perf_counter()
                with torch.inference_mode(), autocast(device, how.precision):
                    for _ in range(count // how.batch_size):
                        embedded = backbone.encode_image(batch)
                embedded.cpu()
                return count / (time.perf_counter() - started)

            machine = f"{torch.cuda.get_device_name()}, bf16: " if is_gpu else ""
            results.append(
                alternate(
                    f"{machine}encoding with {name}: from JPEG files against bare forward",
                    ours,
                    bare,
                    goal=">= 0.9",
                    unit="images/s",
                    n=n or (3 if is_gpu else 5),
                    note=f"public figure for an H100: {PUBLIC[name]:,}" if name in PUBLIC else "",
                )
            )
    return results
