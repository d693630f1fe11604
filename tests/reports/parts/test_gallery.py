"""The gallery shows the same images of every backbone."""

from __future__ import annotations

import numpy as np


def test_gallery_has_truth_and_every_backbone(report):
    galleries = {g.column.task: g for g in report.galleries}
    assert set(galleries) == {"voc/linear", "nyu-depth/linear"}
    for gallery in galleries.values():
        reasons = [row.why for row in gallery.rows]
        assert (
            reasons.count("evenly spaced") == 4
            and "worst for all" in reasons
            and "backbones differ most" in reasons
        )
        assert len({row.name for row in gallery.rows}) == len(gallery.rows)
        for row in gallery.rows:
            there = {name for name, tile in row.predictions if tile}
            assert there == {"clip-ft", "cliptex"}
    voc = galleries["voc/linear"]
    scores = report.analysis.scores
    column = voc.column
    worst = next(row for row in voc.rows if row.why == "worst for all")
    mean = np.mean([scores[b, column].each[:12] for b in ("clip-ft", "cliptex")], axis=0)
    shown = {int(row.name[:4]) for row in voc.rows if row.why == "evenly spaced"}
    assert int(worst.name[:4]) == min(
        (n for n in range(12) if n not in shown), key=lambda n: mean[n]
    )
