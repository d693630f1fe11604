"""Pictures of features in a report: of the same images, and no larger than the page takes."""

from __future__ import annotations

import numpy as np
import pytest

from reports.pages import render_page
from reports.pictures import make_feature_pictures
from reports.records import PICTURES
from tests.reports.synthetic import write_runs


def arrays(side: int, images: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(side)
    return {
        "image": np.array([f"{n}.jpg" for n in range(images)]),
        "strip": np.frombuffer(b"webp", np.uint8),
        "colours": rng.integers(0, 255, (images, side, side, 3), np.uint8),
        "map": rng.integers(-127, 127, (images, side, side, 4), np.int8),
        "scale": np.ones(4, np.float32),
        "centre": np.ones(5, np.float32),
        "explained": np.array([0.5, 0.2, 0.1, 0.05], np.float32),
    }


def test_a_map_that_does_not_fit_has_components_alone():
    features = {"a": arrays(6), "b": arrays(8), "c": arrays(4)}
    pictures = make_feature_pictures("voc", features, budget=6 * 6 * 2 * 4 + 4 * 4 * 2 * 4)
    assert [bool(each.data) for each in pictures.maps] == [True, False, True]
    assert all(each.components.startswith("data:image/png") for each in pictures.maps)
    assert pictures.maps[0].retained == pytest.approx(0.85)


def test_a_report_has_those_of_the_same_images(tracker, report_of):
    own = {"clip": arrays(4), "mine": arrays(6), "other": arrays(8, 3)}
    write_runs(tracker, dict.fromkeys(own, 0.5))
    for run in tracker.search(task="voc/linear"):
        np.savez("features.npz", **own[run.backbone])
        tracker.client.log_artifact(run.run_id, "features.npz", PICTURES)
    report = report_of(tracker)
    assert [each.backbone for each in report.features.maps] == ["clip", "mine"]
    page = render_page(report)
    assert "retain 85 %" in page and page.count("data-map=") == 2
