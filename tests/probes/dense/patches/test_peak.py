"""A memory of patches takes little more than its own size while it is filled and searched."""

import weakref
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from probes.dense.patches import memory as memory_module
from probes.dense.patches.knn import PatchKnn, attend
from probes.dense.patches.memory import remember
from probes.dense.patches.pixels import Patches
from probes.dense.patches.probe import InContextSettings, PatchKnnSettings
from probes.image_level.linear import Standardiser
from tests.probes.tiny_mmlab import context

IMAGES, SIDE, WIDTH = 200, 128, 32


class ManyPatches:
    """Images with as many patches as large ones have."""

    dtype = torch.float16

    def __init__(self, *_, **__):
        random = torch.Generator().manual_seed(0)
        self.features = torch.randn(SIDE**2, WIDTH, generator=random)
        self.classes = torch.randint(3, (SIDE, SIDE), generator=random)

    def __len__(self):
        return IMAGES

    def most_patches(self, limit):
        return IMAGES * SIDE**2

    def walk(self):
        for index in range(IMAGES):
            yield Patches(index, self.features, (SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE))

    def labels(self, patches):
        return self.classes


class LiveBytes(TorchDispatchMode):
    """Counts bytes of the tensors that operators of the block make.

    Attributes:
        peak: the most that existed at once.
    """

    def __init__(self):
        super().__init__()
        self.peak, self._tensors = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(results) if isinstance(each, torch.Tensor)]
        self._tensors = [ref for ref in self._tensors if ref() is not None]
        self._tensors += map(weakref.ref, made)
        alive = [tensor for ref in self._tensors if (tensor := ref()) is not None]
        storages = {each.untyped_storage().data_ptr(): each for each in alive}
        self.peak = max(
            self.peak, sum(each.untyped_storage().nbytes() for each in storages.values())
        )
        return results


def test_the_peak_is_at_most_1_3_times_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_module, "PatchImages", ManyPatches)
    spec = SimpleNamespace(ignore_index=255, label_offset=0)
    data = SimpleNamespace(spec=spec, classes=("a", "b", "c"))
    settings = PatchKnnSettings(memory=IMAGES * SIDE**2)
    task = context(tmp_path, data, settings, "tiny-vit")
    queries = Patches(0, torch.randn(16, WIDTH), (4, 4), (4, 4), (8, 8))
    with LiveBytes() as live:
        memory = remember(task)
        standardise = Standardiser.fit(memory.features)
        for distance in settings.distances:
            knn = PatchKnn(memory, standardise, distance, task, held_out=list(range(20)))
            assert len(list(knn.label_maps([queries], [1, 3]))) == 1
        attend(queries.features, memory.features, memory.labels, InContextSettings())
    assert len(memory) == IMAGES * SIDE**2 and memory.features.dtype == torch.float16
    stored = (memory.features, memory.labels, memory.owner, memory.is_void)
    size = sum(each.nbytes for each in stored)
    assert size <= live.peak <= 1.3 * size
