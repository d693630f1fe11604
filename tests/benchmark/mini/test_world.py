"""The world on disk: official layouts, reproducible bytes, and repair of damage."""

import asyncio
import io
import json
import math
import os
import shutil
import signal
import tarfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from webdataset import WebDataset

import benchmark.mini.world  # noqa: F401  registers
from backbones.cliptex.pairs import open_pairs
from benchmark.mini import world
from benchmark.mini.solids import CLASSES
from benchmark.mini.world import VOC, WorldConfig, chunks_of, is_complete
from benchmark.progress import Bar
from probes.datasets.check import prepare
from probes.registry import DATASETS
from tests.executors import run_on
from tests.forks import Fork

pytestmark = pytest.mark.integration

TINY = WorldConfig(
    seed=3,
    size=48,
    pairs=10,
    expert_train=4,
    expert_val=3,
    probe_train=6,
    val=5,
    class_train=10,
    class_val=10,
    retrieval_train=2,
    retrieval=5,
    shard_size=4,
)


class CountingBar(Bar):
    """Counts the steps that it would draw."""

    def __init__(self):
        super().__init__(interval=math.inf)
        self.total = self.done = 0

    def start(self, description, total):
        self.total += total

    def advance(self, steps=1):
        self.done += steps


def build_world(config, jobs=1, progress=None):
    return run_on(lambda executor: world.build_world(config, executor), jobs, progress)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A world that the tests only read."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPTEX_HOME", str(home))
        yield build_world(TINY)


@pytest.fixture
def copy(tiny, own_home):
    """A world of its own for a test to damage."""
    root = own_home / "mini" / tiny.name
    shutil.copytree(tiny, root)
    return root


def contents(root):
    """Relative path → bytes of all that the world consists of; a killed process may leave a
    temporary file."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".tmp")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_same_bytes_whatever_the_workers(tiny, own_home, tmp_path, monkeypatch):
    parallel = build_world(TINY, jobs=2)
    assert parallel != tiny
    assert contents(parallel) == contents(tiny)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "again"))
    steps = CountingBar()
    assert contents(build_world(TINY, progress=steps)) == contents(tiny)
    assert steps.done == steps.total == 55
    steps = CountingBar()
    build_world(TINY, progress=steps)
    assert steps.total == 0, "a finished world is not rendered again"


def test_every_loader_reads_it_unchanged(tiny, own_home):
    counts = dict.fromkeys(("mini-seg", "mini-det", "mini-depth", "mini-normal"), (6, 5))
    for name, expected in {**counts, "mini-class": (10, 10), "mini-retrieval": (2, 5)}.items():
        spec = DATASETS[name]
        data = prepare(spec, tiny / spec.folder, workers=1)
        assert (len(data.samples["train"]), len(data.samples["val"])) == expected
        assert data.skipped == () and not data.partial
        if name in counts:  # and the same in the domain of the experts
            data = prepare(spec, tiny / "expert" / spec.folder, workers=1)
            assert (len(data.samples["train"]), len(data.samples["val"])) == (4, 3)
    assert DATASETS["mini-seg"].classes == ("background", *CLASSES)
    assert DATASETS["mini-class"].class_names(tiny / "imagefolder") == CLASSES


def test_coco_masks_boxes_and_semantic_maps_agree(tiny):
    """pycocotools is the judge."""
    coco = COCO(tiny / "coco/annotations/instances_val2017.json")
    assert [coco.cats[i]["name"] for i in coco.getCatIds()] == list(CLASSES)
    for image in coco.dataset["images"]:
        label = np.asarray(
            Image.open(tiny / f"{VOC}/SegmentationClass/{image['file_name'].replace('jpg', 'png')}")
        )
        painted = np.zeros_like(label)
        for annotation in coco.imgToAnns[image["id"]]:
            mask = coco.annToMask(annotation).astype(bool)
            assert mask.sum() == annotation["area"]
            assert coco_mask.toBbox(coco.annToRLE(annotation)).tolist() == annotation["bbox"]
            assert not painted[mask].any(), "instances do not overlap"
            painted[mask] = 255 if annotation["iscrowd"] else annotation["category_id"]
        assert (painted == label).all()


def test_pairs_are_webdataset_shards_like_img2dataset(tiny):
    keys = []
    for shard in sorted(tiny.glob("pairs/*.tar")):
        for sample in WebDataset(str(shard), shardshuffle=False):
            metadata, caption = json.loads(sample["json"]), sample["txt"].decode()
            assert Image.open(io.BytesIO(sample["jpg"])).size == (48, 48)
            assert (metadata["key"], metadata["caption"]) == (sample["__key__"], caption)
            assert not {"label", "class", "objects"} & metadata.keys(), "no task labels"
            keys.append(sample["__key__"])
    assert len(set(keys)) == TINY.pairs == len(open_pairs(str(tiny / "pairs/{00000..00002}.tar")))


def test_no_picture_is_in_two_splits(tiny):
    pictures = {path.read_bytes() for path in tiny.rglob("*.jpg")}
    for path in tiny.glob("pairs/*.tar"):
        with tarfile.open(path) as tar:
            names = [name for name in tar.getnames() if name.endswith(".jpg")]
            pictures |= {tar.extractfile(name).read() for name in names}
    assert len(pictures) == 55


DAMAGES = {
    "a picture is missing": lambda root: next((root / "coco/val2017").glob("*.jpg")).unlink(),
    "a shard is cut short": lambda root: os.truncate(root / "pairs/00001.tar", 3000),
    "a record is garbage": lambda root: (root / ".chunks/val-00000.json").write_text("{"),
    "a list is edited": (
        lambda root: (root / f"{VOC}/ImageSets/Segmentation/val.txt").write_text("x\n")
    ),
    "the manifest is missing": lambda root: (root / "manifest.json").unlink(),
}


@pytest.mark.parametrize("break_world", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_world_is_detected_and_repaired(tiny, copy, break_world):
    assert is_complete(copy, TINY)
    break_world(copy)
    assert not is_complete(copy, TINY)
    steps = CountingBar()
    assert build_world(TINY, progress=steps) == copy
    assert is_complete(copy, TINY)
    assert contents(copy) == contents(tiny)
    assert steps.total <= 10, "only what is damaged is rendered again"


@pytest.mark.slow
def test_kill_9_then_the_same_call_ends_with_the_same_world(tiny, own_home, tmp_path):
    """The builder is killed between chunks; its workers end too; the second call renders only the
    rest."""
    root = own_home / "mini" / tiny.name
    builder = Fork(build_world, TINY, 2, output=tmp_path / "output")
    builder.wait_for(root / ".chunks", "*.json")
    builder.signal(signal.SIGKILL)
    assert builder.end() == -signal.SIGKILL, "its workers end, too"
    steps = CountingBar()
    assert build_world(TINY, progress=steps) == root
    assert steps.done < 55
    assert contents(root) == contents(tiny)


def test_two_builders_at_once_make_one_world(tiny, own_home, monkeypatch):
    """In one event loop, where a lock that blocks would stop the one that has it."""
    submitted = []

    async def both(executor):
        submit = executor.submit

        def record(function, *args, **options):
            submitted.extend(args[2])
            return submit(function, *args, **options)

        monkeypatch.setattr(executor, "submit", record)
        return await asyncio.gather(*(world.build_world(TINY, executor) for _ in range(2)))

    roots = run_on(both, jobs=2)
    assert roots[0] == roots[1] and contents(roots[0]) == contents(tiny)
    assert sorted(submitted) == sorted(chunks_of(TINY)), "each chunk is rendered once"
