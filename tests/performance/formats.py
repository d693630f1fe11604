"""How features are kept: random access to items in our mapped shards, against other formats of the
same content."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmark.execution.progress import console
from tests.performance.harness import Result, alternate, bench

# channels, side and number of maps: a small backbone's at 64 px, and a ViT-B/16's last at 224 px
SHAPES = {"64 × 8 × 8": (64, 8, 2000), "768 × 14 × 14": (768, 14, 200)}


@bench
def formats(
    reads: int = 500, n: int = 5, shapes: dict[str, tuple[int, int, int]] = SHAPES
) -> list[Result]:
    """Microseconds to read one item of fp16 maps at random and sum it in float32, from files that
    the system has in
    memory: ours, a ``.npy`` that numpy maps, safetensors (a tensor an item, mapped) and zarr (a
        chunk an item)."""
    import numpy as np
    import torch

    from probes.features.store import CacheKey, get_or_build

    results = []
    before = os.environ.get("CLIPTEX_HOME")
    with tempfile.TemporaryDirectory() as name:
        os.environ["CLIPTEX_HOME"] = name
        try:
            for about, (channels, side, count) in shapes.items():
                values = torch.randn(
                    count, channels, side, side, generator=torch.Generator().manual_seed(0)
                ).half()
                each = values[0].nbytes
                key = CacheKey("dense maps", "bench", {"about": about}, ("fp16",), [each] * count)
                ours = get_or_build(key, partial(items_of, values))
                order = np.random.default_rng(0).integers(count, size=reads).tolist()
                readers: dict[str, Callable[[int], Any]] = {"ours": partial(first_of, ours)}
                readers |= others(Path(name), about, values.numpy())
                for reader in readers.values():
                    assert torch.equal(torch.as_tensor(reader(order[0])), values[order[0]])

                def read(reader: Callable[[int], Any], order: list[int] = order) -> float:
                    started = time.perf_counter()
                    for item in order:
                        torch.as_tensor(reader(item)).float().sum()
                    return 1e6 * (time.perf_counter() - started) / len(order)

                results += [
                    alternate(
                        f"reading items of {about} fp16 at random: our shards against {other}",
                        partial(read, readers["ours"]),
                        partial(read, readers[other]),
                        n=n,
                        unit="µs",
                        note=f"{each / 1024:.0f} KiB an item",
                    )
                    for other in readers
                    if other != "ours"
                ]
                ours.close()
        finally:
            if before is None:
                os.environ.pop("CLIPTEX_HOME", None)
            else:
                os.environ["CLIPTEX_HOME"] = before
    if importlib.util.find_spec("zarr") is None:
        console.print("zarr is not installed: not measured (pip install zarr)")
    return results


def items_of(
    values: Any, wanted: Sequence[Sequence[int]]
) -> Iterator[tuple[int, list[Any], dict[str, Any]]]:
    """A ``probes.features.store.Builder`` of rows of ``values``."""
    return ((item, [values[item]], {}) for shard in wanted for item in shard)


def first_of(store: Any, item: int) -> Any:
    """The first array of an item."""
    return store[item][0]


def others(folder: Path, about: str, values: Any) -> dict[str, Callable[[int], Any]]:
    """The same ``values`` (items, C, h, w) written in other formats: name → item → array."""
    import numpy as np
    from safetensors import safe_open
    from safetensors.numpy import save_file

    place = folder / about
    place.mkdir()
    np.save(place / "all.npy", values)
    mapped = np.load(place / "all.npy", mmap_mode="c")
    save_file(
        {str(number): value for number, value in enumerate(values)}, place / "all.safetensors"
    )
    tensors = safe_open(place / "all.safetensors", "pt")
    found: dict[str, Callable[[int], Any]] = {
        ".npy (mapped)": lambda item: mapped[item],
        "safetensors": lambda item: tensors.get_tensor(str(item)),
    }
    if importlib.util.find_spec("zarr") is not None:
        import zarr

        chunked = zarr.open(
            str(place / "zarr"),
            mode="w",
            shape=values.shape,
            chunks=(1, *values.shape[1:]),
            dtype=values.dtype,
        )
        chunked[:] = values
        found["zarr"] = lambda item: chunked[item]
    return found
