"""Segmentation without a trained decoder: shares of patches, and probes that learn what
colours mean. (The golden record of CAPI proves their numbers.)"""

from dataclasses import replace
from importlib import import_module

import cv2
import numpy as np
import pytest
import torch

from cliptex_common.errors import UserError
from probes.dense.patches.memory import held_out_images, remember
from probes.dense.patches.open_vocabulary import class_synonyms
from probes.dense.patches.pixels import Patches, class_shares, label_map
from probes.registry import PROBES
from reports.per_image import image_scores
from tests.kinds import slow_except
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context
from tests.probes.whole_images import DenseColours

SMALL = {"patch-knn": {"neighbours": (1, 3)}, "logreg": {"c": (0.01, 1.0)}, "in-context": {}}


def prepare(folder, name, backbone="tiny-cnn", data=None, seed=0, **settings):
    probe = PROBES[f"segmentation/{name}"]
    data = data or tiny_dense.make(folder / "data", "segmentation", train=6, val=3)
    settings = probe.settings_type(**{"size": 48, **settings})
    return probe, context(folder / "work", data, settings, backbone, seed=seed)


def patches_of(grid, extent, size):
    return Patches(0, torch.zeros(grid[0] * grid[1], 1), grid, extent, size)


def test_shares_count_pixels_of_the_label_map():
    labels = torch.tensor(
        [[0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 2, 2, 255, 255], [255, 255, 255, 0, 1, 1, 1, 1]]
    ).repeat_interleave(2, dim=0)
    shares, is_labelled = class_shares(labels, patches_of((3, 2), (3.0, 2.0), (6, 8)), 3, 255)
    counts = torch.tensor([[2, 2, 0], [0, 0, 4], [1, 3, 0], [0, 0, 2], [1, 0, 0], [0, 4, 0]])
    assert torch.allclose(shares, counts / counts.sum(dim=1, keepdim=True))
    assert is_labelled.tolist() == [True, True, True, True, False, True]
    # of a grid that reaches beyond the image each pixel belongs to the cell its centre lies in
    labels = torch.arange(12).view(3, 4)
    shares, _ = class_shares(labels, patches_of((2, 2), (1.5, 1.25), (3, 4)), 12, 255)
    cells = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [2, 2, 2, 3]])
    assert (shares[cells.flatten(), torch.arange(12)] > 0).all()


def test_a_label_map_in_inference_mode_leaves_no_weights_without_gradients():
    patches = patches_of((2, 3), (2.0, 3.0), (46, 47))
    with torch.inference_mode():
        label_map(torch.zeros(6, 2), patches)
    scores = torch.ones(6, 2, requires_grad=True)  # gradients need weights of no inference mode
    assert label_map(scores, patches).unique().tolist() == [0]


@pytest.mark.parametrize("name", list(SMALL))
def test_images_that_do_not_fit_together_are_predicted_one_by_one(tmp_path, name, monkeypatch):
    fixed = {"patch-knn": {"neighbours": (1,), "distances": ("cosine",)}, "logreg": {"c": (1.0,)}}
    probe, task = prepare(tmp_path, name, **fixed.get(name, {}))
    together, calls = probe.run(task), []

    def limited(scores, patches):
        calls.append(patches.index)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return label_map(scores, patches)

    monkeypatch.setattr(import_module(probe.module.partition(":")[0]), "label_map", limited)
    alone = probe.run(task)
    assert calls == [0, 1, 2, 0, 1, 2]
    (note,) = task.cost.notes
    assert "segmenting images: at most 1 at once instead of 3" in note
    assert alone.metrics == together.metrics


@pytest.mark.parametrize("backbone", slow_except(["tiny-cnn", "tiny-vit14"], ["tiny-vit14"]))
@pytest.mark.parametrize("name", list(SMALL))
def test_it_learns_what_colours_mean(tmp_path, name, backbone):
    probe, task = prepare(tmp_path, name, backbone, **SMALL[name], memory=600, size=128)
    result = probe.run(task)
    assert result.metrics["mIoU"] > 40, "a constant has 20 at most"
    for sample in task.data.samples["val"]:
        path = str(task.data.root / sample.target)
        tiny_dense.cv2.imwrite(path, np.zeros_like(tiny_dense.cv2.imread(path, -1)))
    assert probe.run(task).notes[0] == result.notes[0], "val has no say in the choice"


def test_a_memory_of_crops_has_the_labels_of_their_pixels(tmp_path):
    crops = {"resize": "square-bilinear", "passes": 2, "sampling": "rare", "void": "background"}
    sizes = {"size": 128, "score_size": 128, "memory": 600}
    probe, task = prepare(tmp_path, "in-context", "tiny-vit", **crops, **sizes)
    assert probe.run(task).metrics["mIoU"] > 40


def test_pixels_vote_in_squares_that_the_patches_divide(tmp_path):
    pixels = {"votes": "pixels", **SMALL["patch-knn"]}
    with pytest.raises(ValueError, match="set resize=square-bicubic and score_size"):
        prepare(tmp_path, "patch-knn", **pixels)
    pixels |= {"resize": "square-bicubic", "size": 64}
    probe, task = prepare(tmp_path, "patch-knn", "tiny-vit", score_size=64, **pixels)
    assert probe.run(task).metrics["mIoU"] > 40
    probe, task = prepare(tmp_path, "patch-knn", "tiny-vit", score_size=48, **pixels)
    task = replace(task, settings=replace(task.settings, size=80))
    with pytest.raises(UserError, match="set another score_size"):
        probe.run(task)


def test_the_memory_is_sampled_by_the_seed(tmp_path):
    _, task = prepare(tmp_path, "in-context", memory=30)
    memory = remember(task)
    assert len(memory) == 30 and memory.owner.bincount().tolist() == 6 * [5]
    repeated = remember(task)
    assert torch.equal(memory.features, repeated.features)
    _, reseeded = prepare(tmp_path, "in-context", data=task.data, memory=30, seed=1)
    assert not torch.equal(memory.features, remember(reseeded).features)


def test_held_out_images_are_a_part_of_train_that_follows_from_content(tmp_path):
    data = tiny_dense.make(tmp_path / "data", "segmentation", train=40, val=1)
    _, task = prepare(tmp_path, "logreg", data=data, memory=10**6)
    tenth = held_out_images(replace(task, settings=replace(task.settings, held_out=None)))
    fewer = held_out_images(replace(task, settings=replace(task.settings, held_out=2)))
    assert len(tenth) == 4 and len(fewer) == 2 and set(fewer) < set(tenth)
    assert fewer != tenth[:2], "not the first in the order of the dataset"
    memory = remember(task)
    assert set(memory.owner[memory.unused(fewer)].tolist()) == set(fewer)
    assert torch.allclose(memory.labels.float().sum(dim=1), torch.ones(len(memory)), atol=1e-2)


def test_held_out_patches_do_not_vote_on_themselves(tmp_path):
    data = tiny_dense.make(tmp_path / "data", "segmentation", train=8, val=1)
    random = np.random.default_rng(0)
    for path in (tmp_path / "data").rglob("train/*.png"):  # labels do not follow from images
        is_image = path.parents[1].name == "images"
        shape = (48, 64, 3) if is_image else (3, 4)
        values = random.integers(0, 256 if is_image else 3, shape, np.uint8)
        cv2.imwrite(str(path), values if is_image else np.kron(values, np.ones((16, 16), np.uint8)))
    options = {"neighbours": (1, 3), "distances": ("cosine",), "held_out": 4}
    probe, task = prepare(tmp_path, "patch-knn", "tiny-vit", data=data, **options)
    probe.run(task)
    (scores,) = (each for _, each in task.log.metrics if any("select" in name for name in each))
    assert max(scores.values()) < 60


def test_open_vocabulary_reads_what_it_sees(tmp_path):
    probe, task = prepare(tmp_path, "open-vocabulary", templates="photo")
    result = probe.run(replace(task, backbone=DenseColours()))
    assert result.metrics["mIoU"] > 80
    assert result.notes[0] == "prompts: photo (1 for each of 3 names)"
    assert result.preview.is_file()
    assert probe.splits == ("val",) and probe.needs_text and probe.needs_dense_text


def test_synonyms_of_classes():
    classes = ("background", "potted plant", "wall-brick", "door;double door")
    synonyms = class_synonyms(classes, ("sky", "sea"))
    assert synonyms == [["sky", "sea"], ["potted plant"], ["wall brick"], ["door", "double door"]]
    assert class_synonyms(("background",), ()) == [["background"]]


@pytest.mark.parametrize("name", ["patch-knn", "in-context"])
def test_void_that_can_be_predicted_has_a_score_in_reports(tmp_path, name):
    probe, task = prepare(tmp_path, name, void="vote" if name == "patch-knn" else "class")
    scores = image_scores("segmentation", probe.run(task).per_image).classes
    assert scores.names == (*task.data.classes, "void") and len(scores.values) == len(scores.names)
