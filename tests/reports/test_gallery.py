"""The gallery shows the same images of every backbone."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from reports.records import GALLERY
from tests.reports.synthetic import write_runs


def test_a_gallery_shows_every_backbone_and_the_worst_images(report):
    galleries = {gallery.column.task: gallery for gallery in report.galleries}
    assert set(galleries) == {"voc/linear", "nyu-depth/linear"}
    for gallery in galleries.values():
        reasons = [row.reason for row in gallery.rows]
        assert reasons.count("evenly spaced") == 4
        assert {"worst for all", "backbones differ most"} <= set(reasons)
        assert len({row.name for row in gallery.rows}) == len(gallery.rows)
        for row in gallery.rows:
            pictured = [tile.label for tile in row.tiles if tile.data]
            assert pictured == ["image", "ground truth", "clip-ft", "cliptex"]
    voc = galleries["voc/linear"]
    scores = [
        report.analysis.scores[name, voc.column].of_images()[:12] for name in ("clip-ft", "cliptex")
    ]
    mean = np.mean(scores, axis=0)
    worst = next(row for row in voc.rows if row.reason == "worst for all")
    spaced = {int(row.name[:4]) for row in voc.rows if row.reason == "evenly spaced"}
    assert int(worst.name[:4]) == min(set(range(12)) - spaced, key=lambda number: mean[number])


def test_a_picture_that_is_missing_is_left_out(tracker, report_of):
    write_runs(tracker, {"clip": 0.6}, pictures=True)
    (run,) = tracker.search(task="voc/linear")
    path = Path(run.artifacts) / GALLERY
    with zipfile.ZipFile(path) as pack:
        members = {name: pack.read(name) for name in pack.namelist()}
    del members["000-prediction.webp"]
    with zipfile.ZipFile(path, "w") as pack:
        for member in members.items():
            pack.writestr(*member)
    (gallery,) = report_of(tracker).galleries
    missing = [
        (row.name, tile.label) for row in gallery.rows for tile in row.tiles if not tile.data
    ]
    assert missing == [("0000.jpg", "clip")]
