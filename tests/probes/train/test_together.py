"""Multi-head training: the heads of a task group on one pass, each of which ends as if it had been
alone, bit by bit."""

import itertools
import multiprocessing
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones import registry
from probes.base import Context, TaskResult
from probes.dense.config import dense_config
from probes.dense.losses import TaskScores
from probes.dense.pipelines import LoadGroundTruth
from probes.features.files import stores
from probes.features.store import root
from probes.registry import PROBES
from probes.select import held_out_by_content
from probes.train import sampling
from probes.train.loop import STATE_FILE
from tests.kinds import slow_except
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import TinyBackbone, context
from tests.recorder import Recorder

pytestmark = pytest.mark.integration

SMALL = {
    "size": 32,
    "batch_size": 3,
    "channels": 8,
    "scale_range": (0.7, 1.5),
    "warmup": 0.0,
    "max_iters": 6,
    "lr": 0.01,
    "feature_stride": 8,
}
CACHED = {"fixed_crops": 2, "cache": "fp16"}
Key = tuple[str, str]
SEGMENTATION: tuple[Key, ...] = (
    ("segmentation", "linear"),
    ("segmentation", "pspnet"),
    ("segmentation", "deeplabv3"),
)
KINDS: tuple[Key, ...] = (("segmentation", "linear"), ("depth", "pspnet"), ("normals", "linear"))
REGRESSION = KINDS[1:]


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """How often the backbone encoded, a ground truth was read and an image decoded."""
    from mmcv.transforms import LoadImageFromFile

    counted: Counter = Counter()

    def count(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def counting(self, *args: Any) -> Any:
            counted[owner.__name__] += 1
            return original(self, *args)

        monkeypatch.setattr(owner, name, counting)

    count(TinyBackbone, "forward")
    count(LoadGroundTruth, "transform")
    count(LoadImageFromFile, "transform")
    return counted


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Any]:
    """Three datasets on the same photographs; those of depth and normals lie in one folder, as
    NYU's."""
    folder = tmp_path_factory.mktemp("data")
    datasets = {
        kind: tiny_dense.make(folder / kind, kind, train=5, val=3)
        for kind in ("segmentation", "depth", "normals")
    }
    for kind, split in itertools.product(datasets, ("train", "val")):
        for image in (folder / f"segmentation/images/{split}").iterdir():
            (folder / f"{kind}/images/{split}/{image.name}").write_bytes(image.read_bytes())
    datasets["backbone"] = registry.create("tiny-cnn", seed=3)
    return datasets


def task(
    folder: Path,
    data: dict[str, Any],
    kind: str,
    name: str,
    recorder: Recorder | None = None,
    **change: Any,
) -> Context:
    settings = PROBES[f"{kind}/{name}"].settings_type(**{**SMALL, **change})
    datasets = context(folder / f"{kind}-{name}", data[kind], settings, recorder=recorder)
    return replace(datasets, backbone=data["backbone"])  # one for all tasks, as in a run


def together(contexts: dict[Key, Context]) -> dict[Key, TaskResult | Exception]:
    tasks = [(PROBES["/".join(key)], each) for key, each in contexts.items()]
    return dict(zip(contexts, tasks[0][0].run_group(tasks), strict=True))


def weights(task: Context) -> dict[str, torch.Tensor]:
    return torch.load(task.work_dir / STATE_FILE, weights_only=True)["model"]


@pytest.fixture(scope="module")
def check_as_alone(data, tmp_path_factory):
    """Assert that heads have the metrics, scores of images and weights, bit by bit, that each has
    alone. They are trained alone once for all tests."""
    alone: dict[tuple[Key, Any], tuple[TaskResult, Context]] = {}

    def check(results: dict, contexts: dict[Key, Context]) -> None:
        for key, result in results.items():
            if isinstance(result, Exception):
                raise result
            trained = key, contexts[key].settings
            if trained not in alone:
                own = replace(
                    contexts[key], num_workers=0, work_dir=tmp_path_factory.mktemp("alone")
                )
                alone[trained] = PROBES["/".join(key)].run(own), own
            expected, own = alone[trained]
            assert result.metrics == expected.metrics
            assert result.per_image.keys() == expected.per_image.keys()
            for name, scores in result.per_image.items():
                assert (scores == expected.per_image[name]).all()
            ours, theirs = weights(contexts[key]), weights(own)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    return check


@pytest.mark.parametrize("workers", slow_except([0, 1], [0]))
def test_random_crops_are_decoded_and_encoded_once_and_each_head_ends_as_alone(
    tmp_path, data, calls, check_as_alone, workers
):
    contexts = {
        key: replace(task(tmp_path, data, *key), num_workers=workers) for key in SEGMENTATION
    }
    outcomes = together(contexts)
    # 6 batches of training and 3 of evaluation, whose predictions are drawn
    assert calls["TinyBackbone"] == 6 + 3
    if not workers:
        assert calls["LoadGroundTruth"] == 6 * 3 + 3
    check_as_alone(outcomes, contexts)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("trainers", "change"),
    [(SEGMENTATION, CACHED), (KINDS, CACHED), (REGRESSION, {})],
    ids=["probes", "kinds", "uncached kinds"],
)
def test_one_pass_serves_several_ground_truths(
    tmp_path, data, calls, check_as_alone, trainers, change
):
    """Each photograph is decoded once, or its features read once, and every head sees its own truth
    of the same crop."""
    contexts = {key: task(tmp_path, data, *key, **change) for key in trainers}
    outcomes = together(contexts)
    if not change:
        assert calls["LoadImageFromFile"] == 6 * 3 + 3
        assert calls["TinyBackbone"] == 6 + 3
    check_as_alone(outcomes, contexts)


def test_no_head_is_scored_in_larger_batches_than_alone(tmp_path, monkeypatch):
    """Where another one puts out less for a pixel, and comes first."""
    monkeypatch.setattr(sampling, "OUTPUTS", 2 * 48 * 64)  # an image with normals, two with depth
    kinds = ("depth", "normals")
    data = {kind: tiny_dense.make(tmp_path / kind, kind, train=3, val=6) for kind in kinds}
    data["backbone"] = registry.create("tiny-cnn", seed=3)
    sizes: dict[str, list[int]] = {}
    score = TaskScores.process

    def process(metric, batch, samples):
        sizes.setdefault(metric.task.name, []).append(len(samples))
        score(metric, batch, samples)

    monkeypatch.setattr(TaskScores, "process", process)

    def contexts(folder: str) -> dict[Key, Context]:
        settings = {"size": 32, "batch_size": 3, "channels": 8, "max_iters": 1}
        keys = [(kind, "linear") for kind in kinds]
        return {key: task(tmp_path / folder, data, *key, **settings) for key in keys}

    for key, context_alone in contexts("alone").items():
        PROBES["/".join(key)].run(context_alone)
    alone, sizes = sizes, {}
    together(contexts("group"))
    assert (max(alone["depth"]), max(alone["normals"])) == (2, 1)
    assert max(sizes["normals"]) == 1


def test_a_config_is_resolved_once_for_the_group_and_the_training(tmp_path, data, monkeypatch):
    resolved = []

    def build(probe, context, *options):
        resolved.append(probe.name)
        return dense_config(probe, context, *options)

    monkeypatch.setattr("probes.dense.group.dense_config", build)
    probe = PROBES["segmentation/linear"]
    _, joined = probe.join_group(task(tmp_path, data, "segmentation", "linear", max_iters=1))
    assert "mIoU" in probe.run(joined).metrics
    assert resolved == ["linear"]


def test_groups_are_of_tasks_that_one_pass_can_train(tmp_path, data):
    def key(kind: str, name: str, **change: Any) -> str:
        return PROBES[f"{kind}/{name}"].join_group(task(tmp_path, data, kind, name, **change))[0]

    linear = ("segmentation", "linear")
    same = [
        key(*linear),
        key("segmentation", "pspnet"),
        key(*linear, lr=1.0, max_iters=9),
        key(*linear, lr_grid=(0.1, 1.0)),
    ]
    assert len({*same, key(*linear, feature_stride=4)}) == 1
    assert key(*linear) != key("depth", "linear")  # its crops follow from the labels
    assert key("depth", "linear") == key("normals", "linear")  # copies of the same photographs
    assert len({key(*each, **CACHED) for each in KINDS}) == 1
    different = (
        {"batch_size": 4},
        {"fixed_crops": 3},
        {"cache": "fp32"},
        {"size": 48},
        {"layers": "last"},
        {"flip": 0.0},
    )
    assert len({key("depth", "linear", **{**CACHED, **change}) for change in ({}, *different)}) == 7


def test_killed_and_resumed_each_ends_as_alone(tmp_path, data, check_as_alone):
    keys = SEGMENTATION[:2]

    def doomed() -> None:
        torch.set_num_threads(1)
        together(
            {
                key: task(tmp_path, data, *key, recorder=Recorder(die_at=3, kill=True))
                for key in keys
            }
        )

    process = multiprocessing.get_context("fork").Process(target=doomed)
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    states = list(tmp_path.rglob(STATE_FILE))
    assert len(states) == 2
    states[0].unlink()  # one begins anew, the other one waits
    contexts = {key: task(tmp_path, data, *key) for key in keys}
    check_as_alone(together(contexts), contexts)


def test_a_grid_holds_out_the_same_images_for_every_task_on_them(tmp_path, data):
    rates = (0.1, 0.01, 1e30)
    grids = {key: task(tmp_path, data, *key, lr_grid=rates, **CACHED) for key in KINDS}
    assert len({tuple(held_out_by_content(each)) for each in grids.values()}) == 1
    assert len({PROBES["/".join(key)].join_group(each)[0] for key, each in grids.items()}) == 1
    outcomes = together(grids)
    for key, result in outcomes.items():
        recorder, notes = grids[key].log, "\n".join(result.notes)
        (chosen,) = recorder.curve("select/lr")
        metric = next(iter(PROBES["/".join(key)].metrics))
        scores = {rate: recorder.curve(f"select/{metric}/lr_{rate:g}")[0] for rate in rates[:2]}
        direction = PROBES["/".join(key)].metrics[metric].direction
        assert direction * scores[chosen] == max(direction * each for each in scores.values())
        assert f"learning rate {chosen:g}: best of 3 on 1 held-out" in notes
        assert "learning rate 1e+30 failed: the loss is not finite" in notes
        assert recorder.curve(f"train/loss/lr_{chosen:g}") and recorder.curve("train/loss")
    # features of train, of val, and of the held-out images whole; nothing is encoded a second time
    # without the held-out ones
    keys = [(store / "key.json").read_text() for store in stores(root())]
    assert sum('"dense maps"' in key for key in keys) == 3


def test_an_interrupted_grid_goes_on_and_chooses_the_same(tmp_path, data):
    uninterrupted = task(tmp_path / "whole", data, "depth", "linear", lr_grid=(1e-4, 0.03))
    result = PROBES["depth/linear"].run(uninterrupted)
    (chosen,) = uninterrupted.log.curve("select/lr")
    alone = task(tmp_path / "alone", data, "depth", "linear", lr=chosen)
    assert PROBES["depth/linear"].run(alone).metrics == result.metrics
    cut = task(tmp_path / "cut", data, "depth", "linear", lr_grid=(1e-4, 0.03))
    for stop in (4, 9, 6):  # in the first pass, between the two, in the second
        with pytest.raises(KeyboardInterrupt):
            PROBES["depth/linear"].run(replace(cut, progress=Recorder(die_at=stop)))
    assert len(list(cut.work_dir.rglob(STATE_FILE))) == 3
    again = PROBES["depth/linear"].run(cut)
    assert again.metrics == result.metrics
