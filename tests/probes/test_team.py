"""Several processes that train together give the weights of one device, bit by bit."""

import multiprocessing
from collections import namedtuple

import pytest
import torch

import probes.team as team
from tests.probes import tiny_coco, tiny_dense
from tests.probes.datasets import make
from tests.probes.image_level import test_tuned as images
from tests.probes.train import test_tuned as dense
from tests.recorder import Recorder

pytestmark = pytest.mark.integration
CPU = torch.device("cpu")


@pytest.fixture
def two_devices(monkeypatch):
    """A function: from now on there are so many."""
    return lambda count=2: monkeypatch.setattr(team, "devices_for", lambda _: [CPU] * count)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dense.make(tmp_path_factory.mktemp("data"), "segmentation", train=10)


def trained(folder, data, **changes):
    options = {"accumulate": 3, "ema": 0.9, "max_iters": 3, **changes}
    return dense.train(folder, data, "all", **options)


def test_a_dense_head_and_its_backbone(data, tmp_path, two_devices):
    """Three parts on two devices, with drop path, statistics of the head and an average."""
    expected = trained(tmp_path / "one", data)
    two_devices()
    result = trained(tmp_path / "two", data)
    assert dense.same(expected, result) and expected.metrics == result.metrics
    assert "the parts of a batch were computed on 2 devices at once" in result.cost.notes
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_stopped_and_resumed(data, tmp_path, two_devices):
    expected = trained(tmp_path / "one", data)
    two_devices(3)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "two", data, recorder=Recorder(die_at=2))
    resumed = trained(tmp_path / "two", data)
    assert resumed.resumed_at == 2 and dense.same(expected, resumed)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "attentive"])
def test_classification(head, tmp_path, two_devices):
    root = make.make_imagefolder(tmp_path / "images", 8, 3)
    options = {"accumulate": 2, "learning_rates": (1e-3,)}
    results = []
    for name in ("one", "two"):
        task = images.prepare(root, tmp_path / name, "all", head, **options)
        results.append(task[0].run(task[1]))
        two_devices()
    one, two = (result.head.tensors for result in results)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_a_detector(tmp_path, two_devices):
    """Each part is padded to its own largest image."""
    data = tiny_coco.prepared(tiny_coco.write(tmp_path / "shapes"))
    probe = dense.PROBES["detection/mask-rcnn"]
    settings = {"max_iters": 2, "batch_size": 4, "out_channels": 32, "short_side": 64}
    settings |= {"long_side": 96, "tune": "all", "tune_rates": (1e-3,), "accumulate": 2}
    heads = []
    for name in ("one", "two"):
        heads.append(probe.run(dense.task_of(probe, tmp_path / name, data, **settings)).head)
        two_devices()
    one, two = (head.tensors for head in heads)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_an_error_of_another_process_ends_the_training(data, tmp_path, monkeypatch):
    monkeypatch.setattr(team, "devices_for", lambda _: [CPU, torch.device("meta")])
    with pytest.raises(RuntimeError, match="Device 'meta'"):
        trained(tmp_path, data)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_training(data, tmp_path, two_devices):
    class Killer(Recorder):
        def advance(self, count=1):
            for process in multiprocessing.active_children():
                process.kill()

    two_devices()
    with pytest.raises(RuntimeError, match="another process of this training has ended"):
        trained(tmp_path, data, recorder=Killer())


def test_devices_of_one_training(monkeypatch):
    """Those that the process sees, unless one was asked for by its number."""
    assert team.devices_for(CPU) == [CPU]
    monkeypatch.setattr(team, "device_count", lambda: 3)
    cuda = torch.device("cuda")
    expected = [cuda, torch.device("cuda:1"), torch.device("cuda:2")]
    assert team.devices_for(cuda) == expected
    assert team.devices_for(torch.device("cuda:1")) == [torch.device("cuda:1")]


def test_little_shared_memory_is_a_note(data, tmp_path, two_devices, monkeypatch):
    two_devices()
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(team.shutil, "disk_usage", lambda _: usage(1000))
    result = trained(tmp_path, data, max_iters=1)
    assert any(note.startswith("tuned on one device") for note in result.cost.notes)
