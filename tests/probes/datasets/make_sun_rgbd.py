"""A small copy of SUN RGB-D in MDET's layout."""

from pathlib import Path

import numpy as np

from tests.probes.datasets.make import picture, save, write_lines


def make_sun_rgbd(root: Path, depths: int = 2) -> dict[Path, np.ndarray]:
    """Image → its depth in metres, some of it 0 and some beyond 8 m; one line has no depth."""
    rng, result, lines = np.random.default_rng(0), {}, ["SUNRGBD/kv1/none.jpg None"]
    for number in range(depths):
        folder = f"SUNRGBD/kv1/scene{number}"
        image = save(root / folder / "image/0.jpg", picture(rng, (96, 80)))
        metres = rng.uniform(0.5, 9.5, (80, 96))
        metres[::7] = 0
        millimetres = np.rint(1000 * metres).astype(np.uint16)
        save(root / folder / "depth/0.png", (millimetres << 3) | (millimetres >> 13))
        lines.append(f"{folder}/image/0.jpg {folder}/depth/0.png")
        result[image] = millimetres / 1000
    write_lines(root / "SUNRGBD_val_splits.txt", lines)
    return result
