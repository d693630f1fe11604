"""Objects that are cut out of images; TokenCut's own code is the oracle of
``tests/protocols/metrics/tokencut.py``."""

from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from probes.matching.grouping import Grid, cut, mask_scores, overlaps
from probes.matching.probe import TOKENCUT
from probes.registry import DATASETS
from tests.probes.datasets.make import save
from tests.probes.matching.layouts import Patches, make_voc_objects, noisy_scene
from tests.probes.whole_images import Colours, context


class Tiles(Colours):
    """Its features are the colours of patches of 16 pixels, less a dark grey."""

    strides, divisor = (16,), 16

    def forward(self, images):
        return tuple(each + 1.2 for each in super().forward(images))


def test_objects_of_voc_are_cut_out_and_scored_by_box_and_by_mask(tmp_path):
    root = make_voc_objects(tmp_path)
    task = context(TOKENCUT, DATASETS["voc-objects"], root, backbone=Tiles())
    result = TOKENCUT.run(task)
    assert result.per_image["CorLoc"].tolist() == [1, 1, 1]
    assert result.per_image["IoU"][0] == 1, "it lies over patches"
    assert (result.per_image["IoU"] <= result.per_image["ceiling_IoU"]).all()
    assert (result.per_image["IoU"] > result.per_image["floor_IoU"]).all()
    assert result.metrics["floor_CorLoc"] == 0 and result.per_image["F"][0] > 0.6
    assert "at best on its grid" in result.notes[0]
    task = context(TOKENCUT, DATASETS["voc-objects"], root, backbone=Tiles(), size=512)
    finer = TOKENCUT.run(task).metrics
    assert finer["CorLoc"] == 100 and finer["IoU"] > result.metrics["IoU"]


def test_masks_of_any_classes_need_no_boxes(tmp_path):
    root = make_voc_objects(tmp_path / "voc")
    for path in sorted(root.glob("JPEGImages/*")):
        name = path.stem
        save(tmp_path / f"own/images/val/{name}.png", np.asarray(Image.open(path)))
        mask = np.asarray(Image.open(root / f"SegmentationClass/{name}.png"))
        save(tmp_path / f"own/annotations/val/{name}.png", mask)
    task = context(TOKENCUT, DATASETS["object-masks"], tmp_path / "own", backbone=Patches())
    assert "CorLoc" not in TOKENCUT.run(task).metrics
    assert next(iter(TOKENCUT.with_main_metric("IoU").metrics)) == "IoU"


def test_what_is_cut_out_of_void_changes_no_number_of_a_mask(tmp_path):
    photo, mask = noisy_scene(0, (96, 128))
    photo, mask = photo // 8, 0 * mask
    photo[16:64, 32:96] = 250, 230, 20  # the cut
    mask[16:64, 32:64], mask[16:64, 64:96] = 1, 255
    save(tmp_path / "images/val/0.png", photo)
    save(tmp_path / "annotations/val/0.png", mask)
    task = context(TOKENCUT, DATASETS["object-masks"], tmp_path, backbone=Tiles())
    metrics = TOKENCUT.run(task).metrics
    assert [metrics[name] for name in ("IoU", "F", "ceiling_IoU", "ceiling_F")] == [100] * 4


def test_the_ceiling_is_the_best_set_of_patches():
    """Of all 2^9, with unknown pixels, and patches that the image cuts off."""
    random = np.random.default_rng(0)
    grid = Grid((3, 3), (10, 11), (10, 11), 4)
    classes = random.choice([0, 0, 3, 255], (10, 11)).astype(np.uint8)
    classes[2:8, 5:9] = 1
    sets = (np.reshape(bits, (3, 3)) for bits in product([False, True], repeat=9))
    best = max(mask_scores(cells, grid, classes)["IoU"] for cells in sets if cells.any())
    some = np.eye(3, dtype=bool)
    assert mask_scores(some, grid, classes)["ceiling_IoU"] == pytest.approx(best)


def test_the_ceiling_is_the_best_box_of_the_grid():
    grid = Grid((3, 4), (10, 14), (10, 14), 4)
    rows, columns = ([(a, b) for a in e for b in e if a < b] for e in grid.edges)
    every = np.array(
        [(left, top, right, bottom) for (top, bottom), (left, right) in product(rows, columns)],
        float,
    )
    for box in np.array([[1, 1, 3, 9], [5, 2, 14, 10], [0, 0, 4, 4], [6, 3, 8, 5]], float):
        found = overlaps(grid.around(box), box[None]).max()
        assert found == pytest.approx(overlaps(every, box[None]).max())


def test_fewer_than_three_patches_are_one_object():
    assert cut(torch.randn(4, 1, 2), 0.2).tolist() == [[True, True]]
