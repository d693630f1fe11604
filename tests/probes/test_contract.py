"""One contract over every registered probe, with settings that follow from its own declaration.

Each is run once, and what it gave is compared with what it gives again: resumed, from stored
features, of fewer images, by its stored head, in less memory. On an accelerator
``tests/accelerator/cases/test_probes.py`` compares every probe with the CPU.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.backbone import state_sha256
from cliptex_common.device import CPU, isolated_rng
from cliptex_common.settings import field_names, with_changes
from probes.base import Context, Cost, Probe, TaskResult
from probes.datasets.base import PreparedDataset, with_share
from probes.dense.tasks import DENSE_TASKS
from probes.predictor import read_head
from probes.registry import PROBES
from reports.per_image import TOLERANCE, image_scores
from reports.records import to_columns
from tests.accelerator.cases.tasks import make_task, small, write_data
from tests.probes import tiny_dense
from tests.probes.test_predictor import check_detections, stored_predictor
from tests.probes.tiny_mmlab import TinyBackbone
from tests.probes.whole_images import Colours
from tests.recorder import Recorder

pytestmark = pytest.mark.integration

# what a setting switches on that other code computes, where a probe has it
SWITCHES: dict[str, dict[str, Any]] = {
    "random_crops": {
        "random_crops": True,
        "blocks": (1, 2),
        "average_pool": (False, True),
        "standardise": False,
        "epoch_length": 2,
    },
    "tune": {"tune": "all", "tune_rates": (1e-3,), "learning_rates": (1e-3,), "ema": 0.9},
}
SLOW = ("scene-views/view-matching",)  # its frames have one size; object-views runs the same code
REPEATED = {"fixed_crops": 2, "augment": False}  # crops that come again, which can be cached


def settings_of(probe: Probe, switch: str) -> Any:
    """Small settings of a probe whose training has several states to resume from."""
    names = field_names(probe.settings_type)
    changes = {name: value for name, value in REPEATED.items() if name in names}
    if switch:
        changes |= {name: value for name, value in SWITCHES[switch].items() if name in names}
    settings = with_changes(small(probe, {**probe.defaults, **changes}), changes)
    if "epoch_length" in names:
        settings = with_changes(settings, {"epochs": 3})
    return settings


def cases() -> list[Any]:
    """Every probe, and with each of its switches the first of a kind. The first of a kind or a name
    are fast; what runs the code of others is slow."""
    params, fast, switched = list[Any](), set[Any](), set[Any]()
    for name, probe in PROBES.load_entry_points().items():
        if probe.kind == "unknown-images":  # scored with what another dataset has trained
            continue
        names = field_names(probe.settings_type)
        module = getattr(probe, "module", "")  # none of those that MMEngine configures
        switches = [each for each in SWITCHES if each in names and not probe.head_of]
        new = [each for each in switches if (module, probe.kind, each) not in switched]
        switched |= {(module, probe.kind, each) for each in new}
        for switch in ("", *new):
            code = {(module, switch)} if switch else {(module, probe.kind), (module, probe.name)}
            marks = [pytest.mark.slow] if code <= fast or name in SLOW else []
            fast |= code
            params.append(pytest.param((name, switch), id=f"{name} {switch}".strip(), marks=marks))
    return params


@dataclass
class StoppedIn(Recorder):
    """Interrupts two thirds into the bar of this description."""

    bar: str = ""

    def start(self, description: str, total: int) -> None:
        super().start(description, total)
        self.die_at = self.advanced + max(1, 2 * total // 3) if description == self.bar else None


@dataclass
class Case:
    """A probe with its data and settings, and its first run.

    Attributes:
        home: of the features of the first run.
        context: of the first run; ``log`` has its curves and progress.
    """

    probe: Probe
    data: PreparedDataset
    settings: Any
    folder: Path
    first: TaskResult = field(init=False)
    context: Context = field(init=False)
    runs: int = 0

    def __post_init__(self) -> None:
        self.head = None
        if name := self.probe.head_of:
            trained = PROBES[f"{self.probe.kind}/{name}"]
            self.head = trained.run(self.task("trained")).head
        self.context = self.task("first")
        self.before = state_sha256(self.context.backbone.state_dict())
        self.first = self.run(self.context)

    def task(self, folder: str, **changes: Any) -> Context:
        """A new task in a folder of its own."""
        task = make_task(self.probe, self.folder / folder, CPU, self.data, self.settings)
        return replace(task, **{"head": self.head, **changes})

    def run(self, task: Context, home: str = "home") -> TaskResult:
        """The result of a task whose features are stored in a ``home``."""
        self.runs += 1
        with pytest.MonkeyPatch.context() as patch, isolated_rng(self.runs):  # unlike any other
            patch.setenv("CLIPTEX_HOME", str(self.folder / home))
            return self.probe.run(task)


@pytest.fixture(scope="module", params=cases())
def case(request, tmp_path_factory) -> Case:
    name, switch = request.param
    probe, folder = PROBES[name], tmp_path_factory.mktemp("case")
    if probe.kind in tiny_dense.SPECS:  # of the last four images two lie in one batch
        data = tiny_dense.make(folder / "data", probe.kind, val=4)
    else:
        data = write_data(probe, folder / "data")
    return Case(probe, data, settings_of(probe, switch), folder)


def check_same(actual: TaskResult, expected: TaskResult) -> None:
    """Equal to the last bit: numbers, scores of images, weights and detections."""
    np.testing.assert_equal(dict(actual.metrics), dict(expected.metrics))
    np.testing.assert_equal(dict(actual.per_image), dict(expected.per_image))
    assert actual.detections == expected.detections
    check_same_head(actual, expected)


def check_same_head(actual: TaskResult, expected: TaskResult) -> None:
    weights = [result.head.tensors if result.head else {} for result in (actual, expected)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def curves(log: Recorder) -> list[tuple[int, dict[str, float]]]:
    """What a training has logged, step by step."""
    entries = [
        (step, {k: v for k, v in each.items() if "train/" in k}) for step, each in log.metrics
    ]
    return [(step, values) for step, values in entries if values]


def test_it_runs_and_leaves_the_backbone_as_it_was(case):
    probe, result = case.probe, case.first
    main = next(iter(probe.metrics))
    assert np.isfinite(result.metrics[main])
    for name, metric in probe.metrics.items():
        value = result.metrics.get(name, np.nan)
        low, high = metric.low, metric.high
        assert not (low is not None and value < low - 1e-6), (name, value)
        assert not (high is not None and value > high + 1e-6), (name, value)
    lengths = {key: len(values) for key, values in result.per_image.items() if key != "classes"}
    assert set(lengths.values()) == {len(result.per_image["image"])}, lengths
    assert case.before == state_sha256(case.context.backbone.state_dict())
    cost = case.context.cost
    assert ("train" in cost.seconds) <= ("train" in probe.splits) and cost.seconds["eval"] > 0
    assert (cost.trained_parameters > 0) == getattr(case.settings, "is_tuned", False)
    if probe.reuse == "head":
        images = [sample.image for sample in case.data.samples["val"]]
        assert result.per_image["image"].tolist() == images
        assert result.head is not None or probe.head_of
    if result.preview is not None:
        with Image.open(result.preview) as preview:
            assert preview.width > 3 * 64
    assert case.data.spec.name in probe.config(case.context)


def test_its_numbers_follow_from_the_scores_of_images(case):
    result, stored = case.first, case.first.detections
    columns = [] if stored is None else [to_columns(stored)]
    scores = image_scores(case.probe.kind, result.per_image, *columns)
    values = scores.values()
    assert next(iter(case.probe.metrics)) in values
    assert set(scores.images) == set(result.per_image["image"].tolist())
    for name in values.keys() & result.metrics.keys():
        assert values[name] == pytest.approx(result.metrics[name], rel=TOLERANCE, nan_ok=True), name
        twice = scores.metrics[name](np.full((1, len(scores.units)), 2.0))[0]
        assert twice == pytest.approx(values[name], rel=2e-3, nan_ok=True), name


def test_stopped_and_resumed_it_ends_the_same(case):
    """On a new disk, stopped in each of its parts, with a loading process: no step twice."""
    cut, log = case.task("cut"), Recorder()
    for bar in dict(case.context.progress.started):
        with suppress(KeyboardInterrupt):
            case.run(replace(cut, progress=StoppedIn(bar=bar), log=log), "disk")
    check_same(case.run(replace(cut, num_workers=1, log=log), "disk"), case.first)
    if any(path.suffix in (".pt", ".pth") for path in cut.work_dir.rglob("*")):
        assert curves(log) == curves(case.context.log)


def test_stored_features_give_the_same_numbers_and_serve_every_seed(case):
    again = case.task("again")
    is_tuned = getattr(case.settings, "is_tuned", False)
    if "cache" in field_names(type(case.settings)) and not is_tuned:
        again = replace(again, settings=with_changes(case.settings, {"cache": "fp32"}))
        result = case.run(again)
        for name, value in case.first.metrics.items():
            assert result.metrics[name] == pytest.approx(value, rel=2e-3, abs=0.02, nan_ok=True)
        losses = case.context.log.curve("train/loss")
        assert again.log.curve("train/loss") == pytest.approx(losses, rel=2e-3)
    else:
        result = case.run(again)
        check_same(result, case.first)
    other = replace(again, seed=1, work_dir=case.folder / "seed", cost=Cost())
    other.work_dir.mkdir()
    seeded, encoded = case.run(other), other.cost.images["encode"]
    if case.context.cost.disk_bytes or again.cost.disk_bytes:
        assert encoded < max(case.context.cost.images["encode"], again.cost.images["encode"])
    if case.first.head is not None:
        with pytest.raises(AssertionError):
            check_same_head(seeded, result)


def test_of_fewer_images_each_is_scored_as_before(case, tmp_path):
    """By the stored head, as on another dataset; probes that store none run anew."""
    first, head, val = case.first, case.head, case.data.samples["val"]
    if getattr(val[0].target, "pairs", ()):  # the images that it is matched with must be there
        return
    if case.probe.reuse == "head" and not case.probe.head_of:
        first.head.write(tmp_path / "head.safetensors")
        head = read_head(tmp_path / "head.safetensors")
    data = replace(case.data, samples={**case.data.samples, "val": val[1:]})
    result = case.run(case.task("fewer", data=data, head=head))
    images, scored = first.per_image["image"].tolist(), result.per_image["image"].tolist()
    assert np.isfinite(next(iter(result.metrics.values())))
    if case.probe.reuse == "head":
        assert scored == [sample.image for sample in data.samples["val"]]
        rows = [images.index(image) for image in scored]
        for name, values in first.per_image.items():
            if name == "set_median":  # of all images together
                continue
            expected = values if name == "classes" else values[rows]
            np.testing.assert_array_equal(result.per_image[name], expected)


def test_a_share_of_train_gives_what_a_dataset_of_its_images_gives(case):
    """From the features of all of train. (Poses have partners outside of the share.)"""
    names = field_names(type(case.settings))
    if "train" not in case.probe.splits or case.probe.head_of or "partners" in names:
        return
    half = with_share(case.data, 0.5, 3)
    tasks = [
        case.task(folder, data=data, cost=Cost())
        for folder, data in (("share", half), ("alone", half.without_unused))
    ]
    share, alone = (case.run(task) for task in tasks)
    check_same(share, alone)
    assert case.probe.config(tasks[0]) == case.probe.config(tasks[1])
    if case.context.cost.disk_bytes and "epoch_length" not in names:  # no random crops
        assert not tasks[0].cost.images["encode"]
    if share.head is not None:
        with pytest.raises(AssertionError):
            check_same_head(share, case.first)


def test_its_stored_head_predicts_what_was_scored(case, tmp_path):
    first, kind = case.first, case.probe.kind
    scored = {"rank", "score"} & first.per_image.keys() or kind in DENSE_TASKS or first.detections
    if first.head is None or not scored:  # nothing predicts images
        assert case.probe.reuse != "head" or case.probe.head_of
        return
    predictor = stored_predictor(first, tmp_path, case.context.backbone)
    assert predictor.classes == tuple(case.data.classes)
    if first.detections is not None:
        check_detections(predictor, case.data, first.detections)
        return
    score = scorer(case)
    for row, sample in enumerate(case.data.samples["val"]):
        for name, value in score(predictor(case.data.root / sample.image), sample).items():
            expected = first.per_image[name][row]
            np.testing.assert_allclose(value, expected, rtol=2e-3, atol=2e-3, err_msg=name)


def scorer(case: Case) -> Callable[[np.ndarray, Any], Mapping[str, Any]]:
    """Prediction and sample → some of the scores of an image that its probe stores."""
    data, settings = case.data, case.settings
    if "rank" in case.first.per_image:
        return lambda logits, sample: {"rank": (logits >= logits[sample.target]).sum() - 1}
    if "score" in case.first.per_image:
        return lambda logits, sample: {"score": logits}
    task = DENSE_TASKS[case.probe.kind]
    options = task.evaluator(settings, data.spec)
    bound = task.bound(**{k: v for k, v in options.items() if k not in ("type", "task")})
    bound.classes = data.classes

    def score(prediction: np.ndarray, sample: Any) -> Mapping[str, Any]:
        reading = task.reading(data.spec, len(data.classes), settings)
        target = task.load(str(data.root / sample.target), **reading)
        target = target if target.dtype.kind == "f" else target.astype(np.int64)
        maps = [
            torch.from_numpy(np.ascontiguousarray(each if each.ndim == 3 else each[..., None]))
            for each in (prediction, target)
        ]
        return bound.score(*(each.permute(2, 0, 1) for each in maps))

    return score


def test_with_half_the_memory_it_goes_on(case, monkeypatch):
    """The backbone has room for one image; the head is trained already."""
    batches = {False: 0, True: 0}

    def limited(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, images: torch.Tensor) -> Any:
            batches[len(images) > 1] += 1
            if len(images) > 1:
                raise torch.OutOfMemoryError("no room for two images")
            return forward(self, images)

        return call

    for owner, name in ((TinyBackbone, "forward"), (Colours, "forward"), (Colours, "encode_image")):
        monkeypatch.setattr(owner, name, limited(getattr(owner, name)))
    task = case.task("little", head=case.first.head or case.head)
    result = case.run(task, "little-home")
    for name, value in case.first.metrics.items():
        assert result.metrics[name] == pytest.approx(value, rel=1e-3, abs=0.01, nan_ok=True), name
    assert batches[False]
    if batches[True]:
        assert any("at once instead of" in note for note in task.cost.notes)
