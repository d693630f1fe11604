"""Probes trained side by side on one stream: each ends as if it had been alone, and what is shared is made once."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import probes.dense.probe  # noqa: F401 – registers the probes
from backbones import registry
from backbones.errors import NonFiniteLoss
from probes.base import Context, TaskResult
from probes.dense.data import LoadGroundTruth
from probes.registry import PROBES
from probes.runner.lockstep import JointBar, drain, in_lockstep
from probes.runner.stream import Seat, Table, once
from probes.runner.training import STATE
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import Recorder, TinyBackbone, context

SMALL = {
    "size": 32, "batch_size": 3, "channels": 8, "scale_range": (0.7, 1.5), "warmup": 0.0, "max_iters": 6, "lr": 0.01,
    "feature_stride": 8,
}  # fmt: skip
KEPT = {"fixed_crops": 2, "cache": "fp16"}
SEGMENTATION = (("segmentation", "linear"), ("segmentation", "pspnet"))
KINDS = (("segmentation", "linear"), ("depth", "linear"), ("normals", "linear"))


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """How often the backbone encoded and a truth was read."""
    counted: Counter = Counter()

    def count(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def counting(self, *args: Any) -> Any:
            counted[owner.__name__] += 1
            return original(self, *args)

        monkeypatch.setattr(owner, name, counting)

    count(TinyBackbone, "forward")
    count(LoadGroundTruth, "transform")
    return counted


@pytest.fixture
def data(tmp_path) -> dict[str, Any]:
    """Three datasets on the same photographs."""
    made = {}
    for kind in ("segmentation", "depth", "normals"):
        made[kind] = tiny_dense.make(tmp_path / kind, kind, train=5, val=3)
        for split in ("train", "val"):
            for image in (tmp_path / f"segmentation/images/{split}").iterdir():
                (tmp_path / f"{kind}/images/{split}/{image.name}").write_bytes(image.read_bytes())
    made["backbone"] = registry.create("tiny-cnn", seed=3)
    return made


def place(
    folder: Path, data: dict[str, Any], kind: str, name: str, recorder: Recorder | None = None, **change
) -> Context:
    settings = PROBES[f"{kind}/{name}"].settings_type(**{**SMALL, **change})
    made = context(folder / f"{kind}-{name}", data[kind], settings, recorder=recorder)
    return replace(made, backbone=data["backbone"])  # one for all tasks, as in a run


def together(contexts: dict[tuple[str, str], Context]) -> dict[tuple[str, str], TaskResult | Exception]:
    table = Table()
    steps = {}
    for key, each in contexts.items():
        seat = Seat(table=table)
        steps[key] = seat.turns(PROBES["/".join(key)].steps(each, seat))
    return drain(in_lockstep(steps))


def heads(contexts: dict[tuple[str, str], Context]) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    return {key: torch.load(each.work_dir / STATE, weights_only=True)["model"] for key, each in contexts.items()}


def assert_same(one: dict, other: dict, contexts: dict, alone: dict) -> None:
    """The same metrics, scores of images and weights, bit by bit, and the same operations."""
    for key, result in one.items():
        assert result.metrics == other[key].metrics
        assert result.per_image.keys() == other[key].per_image.keys()
        assert all((value == other[key].per_image[name]).all() for name, value in result.per_image.items())
        for name in ("train_flops", "eval_flops"):  # their sum counts what encoding took in that very run
            assert result.cost[name] == other[key].cost[name] > 0
    for key, weights in heads(contexts).items():
        expected = heads(alone)[key]
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in weights)


@pytest.mark.parametrize("workers", [0, 1])
def test_random_crops_are_decoded_and_encoded_once_for_all_and_each_ends_as_alone(tmp_path, data, calls, workers):
    alone = {key: place(tmp_path / "alone", data, *key) for key in SEGMENTATION}
    results = {key: PROBES["/".join(key)].run(each) for key, each in alone.items()}
    for_two = calls.copy()
    contexts = {key: replace(place(tmp_path / "joint", data, *key), num_workers=workers) for key in SEGMENTATION}
    found = together(contexts)
    assert_same(found, results, contexts, alone)
    # 6 batches of training and 3 of evaluation; the panel predicts each of the 3 images twice
    assert for_two["TinyBackbone"] == 2 * (6 + 3 + 6)
    assert calls["TinyBackbone"] - for_two["TinyBackbone"] == 6 + 3 + 2 * 6
    if not workers:
        assert calls["LoadGroundTruth"] - for_two["LoadGroundTruth"] == 6 * 3 + 3 + 2 * 6
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("members", [SEGMENTATION, KINDS])
def test_kept_features_are_stacked_once_for_all_and_each_ends_as_alone(tmp_path, data, monkeypatch, members):
    from probes.dense.cached import StackFeatures
    from probes.runner import bridge

    alone = {key: place(tmp_path / "alone", data, *key, **KEPT) for key in members}
    results = {key: PROBES["/".join(key)].run(each) for key, each in alone.items()}
    counted: Counter = Counter()
    stack, resize = StackFeatures._stack, bridge.resize_concat
    monkeypatch.setattr(StackFeatures, "_stack", lambda *a: counted.update(["stack"]) or stack(*a))
    monkeypatch.setattr(bridge, "resize_concat", lambda *a: counted.update(["resize"]) or resize(*a))
    contexts = {key: place(tmp_path / "joint", data, *key, **KEPT) for key in members}
    assert_same(together(contexts), results, contexts, alone)
    # of the three images of val the second has another shape: three batches
    once_for_all, panels = 6 + 3, 6 * len(members)
    assert counted == {"stack": once_for_all + panels, "resize": once_for_all + panels}


def test_families_are_those_that_read_the_same(tmp_path, data):
    def family(kind: str, name: str, **change: Any) -> str:
        return PROBES[f"{kind}/{name}"].family(place(tmp_path, data, kind, name, **change))

    assert (
        family("segmentation", "linear") == family("segmentation", "pspnet") == family("segmentation", "linear", lr=1.0)
    )
    assert family("segmentation", "linear") != family("depth", "linear")  # crops follow from the truth
    assert len({family(*key, **KEPT) for key in KINDS}) == 1
    different = (
        {"batch_size": 4},
        {"fixed_crops": 3},
        {"cache": "fp32"},
        {"size": 48},
        {"layers": "last"},
        {"flip": 0.0},
    )
    assert len({family("depth", "linear", **{**KEPT, **change}) for change in ({}, *different)}) == 7


def test_one_that_breaks_leaves_the_others_as_they_are(tmp_path, data):
    alone = place(tmp_path / "alone", data, *SEGMENTATION[1])
    result = PROBES["/".join(SEGMENTATION[1])].run(alone)
    contexts = {
        SEGMENTATION[0]: place(tmp_path / "joint", data, *SEGMENTATION[0], lr=1e30),
        SEGMENTATION[1]: place(tmp_path / "joint", data, *SEGMENTATION[1]),
    }
    found = together(contexts)
    assert isinstance(found[SEGMENTATION[0]], NonFiniteLoss)
    (_, other) = SEGMENTATION
    assert_same({other: found[other]}, {other: result}, {other: contexts[other]}, {other: alone})


@pytest.mark.parametrize("change", [{}, KEPT], ids=["uncached", "kept"])
def test_interrupted_and_resumed_ends_as_alone(tmp_path, data, change):
    """States are written at every iteration here (a twentieth of six): the members are at different places when they go on."""
    alone = {key: place(tmp_path / "alone", data, *key, **change) for key in SEGMENTATION}
    results = {key: PROBES["/".join(key)].run(each) for key, each in alone.items()}
    # the first one's fourth iteration is done, and its state not yet written; the second has done three
    broken = {
        SEGMENTATION[0]: place(tmp_path / "cut", data, *SEGMENTATION[0], **change),
        SEGMENTATION[1]: place(tmp_path / "cut", data, *SEGMENTATION[1], recorder=Recorder(die_at=4), **change),
    }
    with pytest.raises(KeyboardInterrupt):
        together(broken)
    states = {key: torch.load(each.work_dir / STATE, weights_only=True)["iteration"] for key, each in broken.items()}
    assert set(states.values()) <= {3, 4}
    (broken[SEGMENTATION[1]].work_dir / STATE).unlink()  # one has to begin anew, and catches up
    contexts = {key: place(tmp_path / "cut", data, *key, **change) for key in SEGMENTATION}
    found = together(contexts)
    for key, result in found.items():
        assert result.metrics == results[key].metrics
    for key, weights in heads(contexts).items():
        assert all(torch.equal(weights[name], value) for name, value in heads(alone)[key].items())


def test_killed_and_resumed_ends_as_alone(tmp_path, data):
    def doomed() -> None:
        torch.set_num_threads(1)
        together(
            {key: place(tmp_path / "cut", data, *key, recorder=Recorder(die_at=3, kill=True)) for key in SEGMENTATION}
        )

    process = multiprocessing.get_context("fork").Process(target=doomed)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert list((tmp_path / "cut").rglob(STATE))
    alone = {key: place(tmp_path / "alone", data, *key) for key in SEGMENTATION}
    results = {key: PROBES["/".join(key)].run(each) for key, each in alone.items()}
    contexts = {key: place(tmp_path / "cut", data, *key) for key in SEGMENTATION}
    assert_same(together(contexts), results, contexts, alone)


def test_a_grid_chooses_what_separate_trainings_would(tmp_path, data, calls):
    """Heads that are trained alone on the same nine tenths give the same scores, so the same rate wins, and its val score is
    that of the head that was chosen."""
    from probes.dense.config import dense_config
    from probes.dense.lr_grid import held_out
    from probes.runner.training import run_training

    kind, rates, recorder = "segmentation", (1e-5, 0.03, 1e30), Recorder()
    grid = place(tmp_path / "grid", data, kind, "linear", recorder=recorder, lr_grid=rates)
    before = calls["TinyBackbone"]
    result = PROBES[f"{kind}/linear"].run(grid)
    encoded = calls["TinyBackbone"] - before
    held = held_out(grid)
    assert len(held) == 1 and held < {sample.image for sample in data[kind].samples["train"]}
    scores, val = {}, {}
    for rate in rates[:2]:
        for on in ("held", "val"):
            one = place(tmp_path / f"{on}-{rate}", data, kind, "linear", lr=rate)
            config = dense_config(PROBES[f"{kind}/linear"], one, held, score_held_out=on == "held")
            (scores if on == "held" else val)[rate] = run_training(config, one).metrics
    best = max(scores, key=lambda rate: scores[rate]["mIoU"])
    assert scores[rates[0]]["mIoU"] != scores[rates[1]]["mIoU"]
    assert result.metrics == {name: val[best][name] for name in result.metrics}
    told = dict(item for _, metrics in recorder.metrics for item in metrics.items())
    assert told["select/lr"] == best
    assert told[f"select/mIoU/lr_{best:g}"] == scores[best]["mIoU"]
    assert f"train/loss/lr_{best:g}" in told
    assert any(f"learning rate {best:g}: best of 3 on 1 held-out" in note and "1e+30" in note for note in result.notes)
    assert encoded == 6 + 1 + 3 + 6  # one stream for all heads; val is scored once
    assert {"tiny-seg/linear", "tiny-seg/linear: evaluation"} == {description for description, _ in recorder.started}


def test_a_grid_holds_out_the_same_images_for_every_task_on_them(tmp_path, data):
    from probes.dense.lr_grid import held_out

    grids = {key: place(tmp_path, data, *key, lr_grid=(0.1, 0.01), **KEPT) for key in KINDS}
    assert len({held_out(each) for each in grids.values()}) == 1
    assert len({PROBES["/".join(key)].family(each) for key, each in grids.items()}) == 1


def test_an_interrupted_grid_goes_on_and_chooses_the_same(tmp_path, data):
    whole = place(tmp_path / "whole", data, "depth", "linear", lr_grid=(1e-4, 0.03), **KEPT)
    result = PROBES["depth/linear"].run(whole)
    recorder = Recorder(die_at=4 + 20)  # the bar of encoding goes on before
    cut = place(tmp_path / "cut", data, "depth", "linear", recorder=recorder, lr_grid=(1e-4, 0.03), **KEPT)
    with pytest.raises(KeyboardInterrupt):
        PROBES["depth/linear"].run(replace(cut, progress=Recorder(die_at=4)))
    assert len(list(cut.work_dir.rglob(STATE))) >= 1
    again = PROBES["depth/linear"].run(replace(cut, progress=Recorder()))
    assert again.metrics == result.metrics


@pytest.mark.parametrize("grid", [(0.1,), (0.1, 0.1), (0.1, -1.0)])
def test_a_grid_that_gives_no_choice_is_refused(grid):
    from backbones.errors import UserError

    with pytest.raises(UserError, match=r"lr_grid=.*two or more different rates above 0"):
        PROBES["depth/linear"].settings_type(lr_grid=grid)


def test_a_grid_can_be_set_from_the_command_line():
    from backbones.overrides import with_changes

    settings = with_changes(PROBES["depth/linear"].settings_type(), {"lr_grid": "0.1,0.01,0.001"})
    assert settings.lr_grid == (0.1, 0.01, 0.001)


def test_the_one_furthest_behind_goes_first_and_each_ends_on_its_own():
    order: list[str] = []

    def member(name: str, first: int, last: int, error: Exception | None = None):
        for number in range(first, last):
            order.append(f"{name}{number}")
            yield 0, number + 1
        if error:
            raise error
        return name

    broken = ValueError("no")
    found = drain(in_lockstep({"a": member("a", 2, 4), "b": member("b", 0, 3), "c": member("c", 0, 1, broken)}))
    assert found == {"a": "a", "b": "b", "c": broken}
    assert order == ["a2", "b0", "c0", "b1", "b2", "a3"]


def test_time_on_shared_things_is_divided_and_the_rest_is_each_ones_own(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("probes.runner.stream.time.perf_counter", lambda: now[0])

    def work(seconds: float) -> str:
        now[0] += seconds
        return "made"

    table = Table()
    whole = Seat(table=table)
    seats = [Seat(whole), Seat(table=table)]
    for seat in seats:
        seat.sit()
    for seat, own in zip(seats, (1.0, 2.0), strict=True):
        with seat.turn():
            work(own)
            assert once("shared", ("x",), lambda: work(10.0)) == "made"
    table.settle()
    assert [seat.clock() for seat in seats] == [6.0, 7.0]
    assert whole.clock() == 5.0  # what its part shared; its own turns were not taken within it here
    table.leave(seats[0])
    with seats[1].turn():
        once("shared", ("y",), lambda: work(4.0))
    assert seats[1].clock() == 11.0  # nobody is left to share with


def test_a_map_that_somebody_changed_is_not_handed_on():
    table = Table()
    first, second = Seat(table=table), Seat(table=table)
    first.sit(), second.sit()
    with first.turn():
        (made,) = once("map", ("x",), lambda: (torch.zeros(2),))
        made += 1
    with second.turn(), pytest.raises(RuntimeError, match="changed in place"):
        once("map", ("x",), lambda: (torch.zeros(2),))


def test_one_bar_for_all_shows_the_one_that_is_behind():
    recorder = Recorder()
    bar = JointBar(recorder)
    a, b = bar.part("a/x"), bar.part("b/y")
    a.start("encoding", 3)
    a.advance(3)
    a.start("a/x", 4), b.start("b/y", 4)
    assert recorder.started == [("encoding", 3), ("a/x", 4), ("a/x + b/y", 4)]
    a.advance()
    assert recorder.advanced == 3
    b.advance(2)
    assert recorder.advanced == 4
    bar.drop("a/x")
    assert recorder.advanced == 5
    b.start("b/y: evaluation", 2)
    assert recorder.started[-1] == ("b/y: evaluation", 2)
