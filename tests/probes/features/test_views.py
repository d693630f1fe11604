"""Features of views are the same wherever the disk has no room, and however Python starts
processes."""

import multiprocessing

import pytest
import torch

from backbones import registry
from cliptex_common.device import CPU
from probes.base import EncodeContext
from probes.dense.patches.images import PatchImages
from probes.image_level.encode import ImageViews
from probes.image_level.settings import Encoding
from tests.probes.dense.patches.test_patches import prepare
from tests.probes.image_level.test_embeddings import paths  # noqa: F401  a fixture


@pytest.mark.parametrize("cache", ["fp16", "bf16"])
def test_features_are_rounded_alike_without_room_on_the_disk(tmp_path, monkeypatch, cache):
    _, task = prepare(tmp_path, "patch-knn", "tiny-vit", cache=cache)

    def maps(home: str) -> list[torch.Tensor]:
        monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / home))
        features = PatchImages(task, "val").views.features(range(3))
        return [feature_map for _, (feature_map,), _ in sorted(features, key=lambda each: each[0])]

    stored = maps("stored")
    monkeypatch.setenv("CLIPTEX_CACHE_GB", "0")
    for expected, computed in zip(stored, maps("full"), strict=True):
        assert computed.dtype == expected.dtype and torch.equal(computed, expected)


def test_loading_processes_start_whatever_the_start_method(paths):  # noqa: F811
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        backbone = registry.create("tiny-cnn", seed=3)
        views = ImageViews(
            EncodeContext(CPU, num_workers=1),
            backbone,
            paths,
            Encoding(),
            encode=lambda images: backbone(images)[-1],
        )
        assert sum(map(len, views.tensors())) == len(paths)
    finally:
        multiprocessing.set_start_method(method, force=True)
