"""On a GPU, where there is one: images a second from JPEG files against the bare forward of the
same model, and a probe."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from tests.performance.harness import Result, alternate, bench
from tests.performance.toys import jpegs

# images a second at 224 px on an H100 in 16 bits, as timm's public benchmarks have them
PUBLIC = {"vit_base_patch16_224": 7_300, "vit_large_patch16_224": 2_500}
IMAGES, BATCH = 8_192, 256


@bench
def cuda() -> list[Result]:
    """``encode_images`` in bf16 (loading processes: all cores) against forward alone on a batch
    that is there already."""
    import torch

    import backbones
    from probes.features.cost import EncodeRun
    from probes.image_level.encode import autocast, encode_images
    from probes.image_level.settings import Encoding

    if not torch.cuda.is_available():
        return []
    device, card = torch.device("cuda"), torch.cuda.get_device_name()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        paths = jpegs(Path(folder), IMAGES)
        for name, public in PUBLIC.items():
            backbone = backbones.create(f"random/timm/{name}").to(device)
            images = torch.randn(BATCH, 3, *backbone.data.size, device=device)

            def ours(backbone: backbones.Backbone = backbone) -> float:
                started = time.perf_counter()
                how = Encoding(precision="bf16", batch_size=BATCH)
                encode_images(backbone, paths, EncodeRun(device, os.cpu_count() or 1), how)
                return IMAGES / (time.perf_counter() - started)

            def bare(
                backbone: backbones.Backbone = backbone, images: torch.Tensor = images
            ) -> float:
                torch.cuda.synchronize()
                started = time.perf_counter()
                with torch.inference_mode(), autocast(device, "bf16"):
                    for _ in range(IMAGES // BATCH):
                        embedded = backbone.encode_image(images)
                embedded.cpu()
                return IMAGES / (time.perf_counter() - started)

            results.append(
                alternate(
                    f"{card}: encoding with {name} in bf16, from JPEG files against bare forward",
                    ours,
                    bare,
                    goal=">= 0.9",
                    unit="images/s",
                    n=3,
                    note=f"public figure for an H100: {public:,}",
                )
            )
    return results
