"""A stored head predicts what the run that trained it scored."""

from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import backbones
from backbones.backbone import Backbone
from cliptex_common.errors import UserError
from probes.base import Head, TaskResult
from probes.datasets.base import PreparedDataset
from probes.image_level.linear import LinearHeads
from probes.predictor import Predictor, load_predictor, read_head
from probes.registry import PROBES
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context

pytestmark = pytest.mark.integration

DENSE = {
    "size": 48,
    "batch_size": 4,
    "channels": 8,
    "scale_range": (0.7, 1.5),
    "max_iters": 3,
    "warmup": 0.0,
}


def stored_predictor(
    result: TaskResult, folder: Path, backbone: Backbone | None = None
) -> Predictor:
    """The predictor from the file that a run stores, on a new backbone where none is given."""
    assert result.head is not None
    result.head.write(folder / "head.safetensors")
    predictor = load_predictor(folder / "head.safetensors", backbone)
    predictor.backbone.register_forward_pre_hook(check_exact)
    return predictor


def check_exact(*_: object) -> None:
    """No product is rounded to TF32, whose switch for convolutions is on by default."""
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


EARLIER = {
    "depth": {"type": "DepthBins", "min_depth": 0.001, "max_depth": 10.0, "bins": 8, "warmup": 0},
    "normals": {"type": "NormalObjective", "uncertainty": True},
}


@pytest.mark.parametrize("kind", EARLIER)
def test_a_head_with_names_of_before_predicts_the_same(tmp_path, kind):
    """Losses were classes of their own, and ``loss_images`` stood in the head."""
    data = tiny_dense.make(tmp_path / "data", kind)
    probe = PROBES[f"{kind}/linear"]
    changes = {"bins": 8} if kind == "depth" else {"uncertainty": True}
    settings = probe.settings_type(**DENSE, **changes)
    result = probe.run(context(tmp_path / "work", data, settings))
    image = data.root / data.samples["val"][0].image
    predictor = stored_predictor(result, tmp_path)
    expected = predictor(image)
    pixels = mmcv.imread(image, channel_order="rgb")
    assert np.array_equal(predictor(pixels), expected), "a file and its pixels are the same"
    metadata = result.head.metadata
    model = metadata["model"]
    head = {**model["decode_head"], "loss_decode": EARLIER[kind]}
    head["loss_images"] = model.pop("loss_images")
    del head["num_classes"], head["threshold"]
    metadata["model"] = {**model, "decode_head": head}
    metadata["imports"] = [*metadata["imports"], "probes.datasets.specs.nyu"]
    assert np.array_equal(stored_predictor(result, tmp_path)(image), expected)


def check_detections(predictor: Predictor, data: PreparedDataset, detections: list[dict]) -> None:
    """A detector predicts for each image what was scored."""
    for sample in data.samples["val"]:
        expected = [entry for entry in detections if entry["image_id"] == sample.target.image_id]
        prediction = predictor(data.root / sample.image)
        scores = [entry["score"] for entry in expected]
        assert prediction["scores"].tolist() == pytest.approx(scores, abs=1e-5)
        corners = prediction["boxes"].copy()
        corners[:, 2:] -= corners[:, :2]
        boxes = np.array([entry["bbox"] for entry in expected]).reshape(-1, 4)
        assert np.allclose(boxes, corners, atol=1e-2)
        if expected:
            assert ("masks" in prediction) == ("segmentation" in expected[0])


HUB = "hub/.:net"
HEAD = {"task": "a", "kind": "depth", "classes": (), "backbone": {}, "weights.sha256": ""}


@pytest.mark.parametrize(
    ("weight", "metadata", "message"),
    [
        (torch.tensor([1.0, float("nan")]), repr(HEAD), "weight is not finite"),
        (torch.zeros(2, dtype=torch.int8), repr(HEAD), "weight is not finite in float32"),
        (torch.zeros(2), repr({**HEAD, "classes": 3}), "classes=3: must be a valid tuple"),
        pytest.param(torch.zeros(2), "(" * 100_000, "is no head of a task's run", id="deep"),
    ],
)
def test_a_head_that_lies_is_one_line(tmp_path, weight, metadata, message):
    save_file({"weight": weight}, tmp_path / "head.st", {"head": metadata})
    with pytest.raises(UserError, match=message) as raised:
        read_head(tmp_path / "head.st")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "weights",
    [{"weight": torch.zeros(4, 2)}, {}, {"weight": torch.zeros(3, 2, dtype=torch.int64)}],
    ids=["shape", "missing", "integers"],
)
def test_a_head_that_does_not_fit_is_one_line(weights):
    head = Head({"bias": torch.zeros(2), **weights}, {**HEAD, "classes": ("b", "c")})
    with pytest.raises(UserError, match=r"(?s)no head of the task: .*weight"):
        head.load_into(torch.nn.Linear(3, 2))
    norm = {"mean": torch.zeros(3), "scale": torch.ones(3)}
    with pytest.raises(UserError, match="the stored head is damaged"):
        LinearHeads.of(Head({**head.tensors, **norm}, {**head.metadata, "columns": (0, 3)}))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model": {"type": "os.mkdir", "path": "started"}}, "os.mkdir is not in the"),
        ({"model": {}, "imports": ["antigravity"]}, "needs antigravity; import it"),
        ({"encoding": 5}, "is damaged"),
        ({"model": {"type": "FrozenBackbone", "name": HUB, "upsampler": {"a": 5}}}, "is damaged"),
        ({"backbone": {"name": f"random/{HUB}"}}, "give backbones.create"),
    ],
)
def test_a_head_starts_nothing(tmp_path, monkeypatch, metadata, message):
    monkeypatch.chdir(tmp_path)
    Path("hubconf.py").write_text("open('started', 'w')")
    backbone = backbones.create("random")
    metadata = {"imports": [], "scope": "mmseg", "pipeline": [], **metadata}
    head = {**HEAD, "backbone": {"name": "random"}, "weights.sha256": backbone.weights.sha256}
    Head({}, head | metadata).write(tmp_path / "head.st")
    with pytest.raises(UserError, match=message):
        load_predictor(tmp_path / "head.st", None if "backbone" in metadata else backbone)
    assert not Path("started").exists()


def test_other_weights_and_other_files_are_refused(tmp_path):
    data = tiny_dense.make(tmp_path / "data", "depth", train=4, val=1)
    task = context(tmp_path / "work", data, PROBES["depth/linear"].settings_type(**DENSE))
    result = PROBES["depth/linear"].run(task)
    reseeded = backbones.create(**{**task.backbone_config, "seed": 7})
    with pytest.raises(UserError, match="was trained on"):
        stored_predictor(result, tmp_path, reseeded)
    head = read_head(tmp_path / "head.safetensors")
    assert not any(name.startswith("backbone") for name in head.tensors), "it is frozen"
    torch.save({}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="is no head"):
        load_predictor(tmp_path / "checkpoint.pt")
