"""ImageNet's other test sets: their classes, and scores of classes that stand for others."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cliptex_common.errors import UserError
from probes.datasets import classification
from probes.datasets.base import UnfitCopy
from probes.datasets.check import prepare
from probes.datasets.shifts import SHIFTS
from probes.image_level.classification import own_classes, score
from probes.image_level.encode import encode_split
from probes.image_level.settings import ALEXNET_ERRORS
from probes.registry import DATASETS, find_task
from tests.probes.datasets.make import make_wds, save
from tests.probes.datasets.make_shifts import CLASSES, make_imagenet, make_shift
from tests.probes.whole_images import context

FOLDERS = {
    "imagenet-a": "imagenet-a",
    "imagenet-r": "imagenet-r",
    "imagenet_sketch": "sketch",
    "imagenetv2": "imagenetv2",
    "objectnet": "objectnet-1.0",
}


def shifted(name, root, trained_root, probe="linear"):
    """The context of a task on a copy, trained on that of ImageNet."""
    spec, probe = find_task(f"{name}/{probe}")
    trained = prepare(DATASETS["imagenet"], trained_root, partial=True)
    data = prepare(spec, root, splits={"val": None}, partial=True)
    task = context(probe, DATASETS["imagenet"], trained_root)
    return replace(task, data=replace(data, trained_on=trained), settings=probe.settings_type())


@pytest.mark.parametrize("name", FOLDERS)
def test_own_classes_are_scored_of_those_that_were_trained_on(name, tmp_path):
    task = shifted(name, make_shift(tmp_path, FOLDERS[name]), make_imagenet(tmp_path / "imagenet"))
    counts = {"imagenet-a": 200, "imagenet-r": 200, "objectnet": 113}
    assert len(task.data.classes) == counts.get(name, 1000)
    colours = {colour: index for index, colour in CLASSES.items()}
    logits = torch.full((len(task.data.samples["val"]), 1000), -1.0)
    logits[:, 0] = 9  # a class that neither -A, -R nor ObjectNet has
    for row, sample in zip(logits, task.data.samples["val"], strict=True):
        with Image.open(task.data.root / sample.image) as image:
            colour = np.asarray(image.convert("RGB"))[8:-8, 8:-8].mean(axis=(0, 1))
        row[colours[min(colours, key=lambda each: np.abs(colour - each).sum())]] = 1
    result = score(task, logits)
    masked = name in counts
    assert result.metrics["top1"] == (100 if masked else 0)
    assert own_classes(task, logits).shape[1] == len(task.data.classes)


def test_the_border_of_objectnet_is_not_seen(tmp_path):
    trained = make_imagenet(tmp_path / "imagenet")
    task = shifted("objectnet", make_shift(tmp_path, "objectnet-1.0"), trained)
    plain = encode_split(replace(task, data=replace(task.data, trained_on=None)), "val")
    cropped = encode_split(task, "val")
    assert (plain - cropped).abs().max() > 1e-2
    for path in (tmp_path / "objectnet-1.0").rglob("*.png"):
        with Image.open(path) as image:
            inner = image.crop((2, 2, image.width - 2, image.height - 2))
        inner.save(path)
    again = shifted("objectnet", tmp_path / "objectnet-1.0", trained)
    again = replace(again, data=replace(again.data, trained_on=None))
    assert torch.equal(encode_split(again, "val"), cropped)


def test_a_webdataset_has_its_own_order_of_classes(tmp_path):
    root = make_wds(tmp_path / "wds_imagenet-a", n_train=0)
    (root / "classnames.txt").write_text("".join(f"class {number}\n" for number in range(200)))
    spec = DATASETS["imagenet-a"]
    assert spec.class_names(root)[:2] == ("class 0", "class 1")
    samples = spec.list_samples(root, "val")
    assert Counter(sample.target for sample in samples) == dict.fromkeys(range(4), 3)


def test_classes_of_a_set_are_in_the_order_of_wordnet_ids():
    for name in ("imagenet-a", "imagenet-r"):
        groups = SHIFTS[name].groups
        assert len(groups) == 200 and groups == tuple(sorted(groups))
    assert SHIFTS["objectnet"].groups[0] == (409, 530)
    assert sum(map(len, SHIFTS["objectnet"].groups)) == 125


def test_imagenets_own_images_of_these_classes_are_beside_them(tmp_path):
    root = make_imagenet(tmp_path / "imagenet")
    wnids = classification.wnids()
    for name, shift in {"a": "imagenet-a", "r": "imagenet-r", "objectnet": "objectnet"}.items():
        groups = SHIFTS[shift].groups
        samples = DATASETS[f"imagenet-val-{name}"].list_samples(root, "val")
        indices = [wnids.index(sample.image.split("/")[1]) for sample in samples]
        targets = [sample.target for sample in samples]
        assert all(index in groups[target] for index, target in zip(indices, targets, strict=True))
        assert set(indices) == {index for group in groups for index in group} & CLASSES.keys()


def test_real_has_several_labels_and_leaves_images_without_any_out(tmp_path):
    root = make_imagenet(tmp_path / "imagenet")
    samples = DATASETS["imagenet-real"].list_samples(root, "val")
    assert len(samples) == 8 and all(isinstance(sample.target, list) for sample in samples)
    task = shifted("imagenet-real", root, root)
    several = max(task.data.samples["val"], key=lambda sample: len(sample.target))
    for label in several.target:
        logits = torch.zeros(8, 1000)
        logits[:, 999] = 1
        logits[task.data.samples["val"].index(several), label] = 2
        assert score(task, logits).metrics["top1"] == pytest.approx(100 / 8)


@pytest.mark.parametrize("number", ["n01440764_10306", "10306"])
def test_real_needs_the_official_names(number, tmp_path):
    root = make_imagenet(tmp_path / "imagenet")
    first = min(root.rglob("val/*/*.JPEG"))
    first.rename(first.with_stem(first.stem + "_n01440764"))  # as on the Hugging Face Hub
    assert len(prepare(DATASETS["imagenet-real"], root, splits={"val": None}, partial=True).samples)
    for image in root.rglob("val/*/*.JPEG"):
        image.rename(image.with_stem(number))
        break
    with pytest.raises(UnfitCopy):
        DATASETS["imagenet-real"].list_samples(root, "val")


def test_mce_is_relative_to_alexnet_and_names_a_missing_corruption(tmp_path):
    trained = make_imagenet(tmp_path / "imagenet")
    task = shifted("imagenet-c", make_shift(tmp_path, "imagenet-c"), trained)
    samples = task.data.samples["val"]
    logits = torch.zeros(len(samples), 1000)
    for row, sample in zip(logits, samples, strict=True):
        corruption, level, *_ = sample.image.split("/")
        right = corruption == "snow" or int(level) > 2
        row[sample.target if right else 0] = 1
    result = score(task, logits)
    present = {name: error for name, error in ALEXNET_ERRORS.items() if name != "fog"}
    expected = [0 if name == "snow" else 100 * 40 / error for name, error in present.items()]
    assert result.metrics["mCE"] == pytest.approx(np.mean(expected))
    assert any("without fog" in note for note in result.notes)
    assert len(np.unique(result.per_image["unit"])) == 2 * len(CLASSES)


def test_a_corruption_without_a_level_is_refused(tmp_path):
    root = tmp_path / "imagenet-c"
    (root / "fog/1").mkdir(parents=True)
    with pytest.raises(UserError, match="fog/1"):
        DATASETS["imagenet-c"].list_samples(root, "val")


def test_unknown_images_are_in_folders_or_lists(tmp_path):
    for name in ("near/a/x/1", "pictures/2", "pictures/3"):
        save(tmp_path / f"{name}.jpg", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "far").mkdir()
    listed = tmp_path / "far/b.txt"
    listed.write_text("pictures/2.jpg -1\npictures/3.jpg\n")
    list_samples = DATASETS["imagenet-ood"].list_samples
    assert {sample.image: sample.target.name for sample in list_samples(tmp_path, "val")} == {
        "near/a/x/1.jpg": "near/a",
        "pictures/2.jpg": "far/b",
        "pictures/3.jpg": "far/b",
    }
    listed.write_text("pictures/4.jpg\n")
    with pytest.raises(UserError, match="which is not in"):
        list_samples(tmp_path, "val")
    listed.write_text("near/a/x/1.jpg\n")
    with pytest.raises(UserError, match="listed twice"):
        prepare(DATASETS["imagenet-ood"], tmp_path, splits={"val": None})
