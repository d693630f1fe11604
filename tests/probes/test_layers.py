"""Probes read any layer of a backbone, and all layers of a run are encoded in one pass."""

from dataclasses import replace

import pytest
import torch

import backbones
from cliptex_common.errors import UserError
from cliptex_common.settings import with_changes
from probes.base import layer_number
from probes.registry import find_task
from tests.kinds import slow_except
from tests.probes import tiny_dense, tiny_mmlab
from tests.probes.datasets.make import make_imagefolder

VIT = "random/timm/test_vit"  # six blocks


@pytest.fixture(scope="module")
def vit():
    return backbones.create(VIT)


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory):
    return tiny_dense.make(tmp_path_factory.mktemp("tiny"), "segmentation")


def contexts(folder, data, vit, task, layers, **changes):
    """Probe and contexts of variants of a task that a run reads in one pass."""
    probe = find_task(task)[1]
    result = []
    for layer in layers:
        field = "features" if probe.kind == "classification" else "layers"
        settings = with_changes(probe.settings_type(), {**changes, field: layer})
        context = tiny_mmlab.context(folder / str(layer), data, settings)
        context = replace(context, backbone=vit, backbone_config={"name": VIT})
        named = [each for each in layers if each != "last"]
        result.append((probe, context.at_layers(named)))
    return result


@pytest.mark.parametrize("name", [VIT, "random/timm/test_resnet", "random/open_clip/ViT-S-32-alt"])
def test_a_backbone_reads_any_of_its_layers_with_the_same_weights(name):
    own = backbones.create(name)
    last = own.data.layers[-1] + 1
    view = own.at_layers([1, last])
    images = torch.randn(1, 3, *own.data.size)
    with torch.inference_mode():
        maps, expected = view(images), own(images)
    assert torch.equal(maps[1], expected[-1]) and view.channels[1] == own.channels[-1]
    assert [images.shape[-1] // each.shape[-1] for each in maps] == list(view.strides)
    assert view.data.layers == (0, last - 1) and own.at_layers([1, last]) is view
    assert backbones.create(name, layers=(1, last)).key() == view.key() != own.key()
    with pytest.raises(UserError, match="not"):
        own.at_layers([own.depth + 1])
    with pytest.raises(UserError, match="layer 0: layers are numbered from 1"):
        own.at_layers([0, 1])


@pytest.mark.parametrize(
    ("layer", "depth", "number"),
    [(1, 12, 1), (12, 12, 12), ("25%", 12, 3), ("50%", 5, 2), ("100%", 24, 24), ("1%", 12, 1)],
)
def test_layers_by_number_or_share_of_the_depth(layer, depth, number):
    assert layer_number(layer, depth, "vit") == number


@pytest.mark.parametrize("value", ["0", "-1", "first", "101%", "0%", "2.5"])
def test_what_is_no_layer(value):
    with pytest.raises(UserError, match=f"layers={value}: must be all, last, the number of"):
        with_changes(find_task("camvid/linear")[1].settings_type(), {"layers": value})
    with pytest.raises(UserError, match="has 12 layers; choose 1 to 12"):
        layer_number(13, 12, "vit")
    with pytest.raises(UserError, match="only its own feature maps"):
        layer_number(1, 0, "mine")


def test_patches_of_all_layers_are_encoded_once(tmp_path, segmentation, vit):
    changes = {"size": 48, "neighbours": 3}
    tasks = contexts(tmp_path, segmentation, vit, "tiny-seg/in-context", [2, "50%", 6], **changes)
    scores = [probe.run(context).metrics["mIoU"] for probe, context in tasks]
    assert [context.cost.images["encode"] for _, context in tasks] == [9, 0, 0]
    ((probe, last),) = contexts(
        tmp_path, segmentation, vit, "tiny-seg/in-context", ["last"], **changes
    )
    assert scores[2] == pytest.approx(probe.run(last).metrics["mIoU"])
    assert scores[0] != scores[2]


@pytest.mark.parametrize("cache", slow_except(["fp32", "none"], ["fp32"]))
def test_heads_on_several_layers_train_in_one_loop_as_they_would_alone(
    cache, tmp_path, segmentation, vit
):
    changes = {"size": 32, "max_iters": 3, "batch_size": 2, "fixed_crops": 1, "cache": cache}
    name = "tiny-seg/linear"
    tasks = contexts(tmp_path / "joint", segmentation, vit, name, [2, 6], **changes)
    probe = tasks[0][0]
    assert len({probe.join_group(context)[0] for _, context in tasks}) == 1
    joint = [result.metrics["mIoU"] for result in probe.run_group(tasks)]
    alone = contexts(tmp_path / "alone", segmentation, vit, name, [2, 6], **changes)
    last = contexts(tmp_path / "last", segmentation, vit, name, ["last"], **changes)
    assert joint == [probe.run(context).metrics["mIoU"] for _, context in alone]
    assert joint[1] == pytest.approx(probe.run(last[0][1]).metrics["mIoU"], abs=1e-3)


def test_class_tokens_of_all_layers_are_encoded_once(tmp_path, vit):
    from probes.datasets.check import prepare
    from probes.image_level.encode import encode_split

    make_imagefolder(tmp_path)
    data = prepare(find_task("imagefolder/knn")[0], tmp_path, splits={"val": None}, partial=True)
    tasks = contexts(tmp_path, data, vit, "imagefolder/knn", [2, 6], size=32)
    second, sixth = (encode_split(context, "val") for _, context in tasks)
    assert [context.cost.images["encode"] > 0 for _, context in tasks] == [True, False]
    assert second.shape == sixth.shape == (len(data.samples["val"]), 64)
    assert not torch.allclose(second, sixth)
