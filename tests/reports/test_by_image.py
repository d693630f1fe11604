"""Two backbones image by image: joined by content, ranked, and what goes with the difference."""

from __future__ import annotations

import numpy as np
import pytest

from reports.by_image import ImageDifferences
from reports.pages import render_page
from reports.per_image import ImageScores
from reports.records import TrackingError
from reports.report import ReportRequest, build_report
from tests.reports.conftest import TASKS


@pytest.fixture(scope="module")
def compared(store):
    """cliptex is better by 0.12 of every label's area; the second has pictures of 12 images."""
    request = ReportRequest(["paper"], tracking_uri=store.uri, pairs=("clip-ft", "cliptex"))
    return build_report(request)


def test_a_report_has_a_section_for_each_task_of_both(compared):
    sections = {section.column.title: section for section in compared.differences}
    assert {name.partition(" ")[0] for name in sections} == {*TASKS}
    depth = sections["nyu-depth/linear"].frame  # of an error, for which less is better
    assert depth.columns.tolist() == ["image", "clip-ft", "cliptex", "difference", "rank"]
    assert len(depth) == 60 and depth["rank"].tolist() == list(range(1, 61))
    assert depth.difference.is_monotonic_decreasing and (depth.difference > 0).all()
    column = sections["nyu-depth/linear"].column
    for name in ("clip-ft", "cliptex"):
        stored = compared.analysis.scores[name, column]
        own = dict(zip(stored.images, stored.of_images(), strict=True))
        assert depth[name].tolist() == [own[image] for image in depth.image]
    page = render_page(compared)
    shown = depth.pictured()
    assert sorted(shown.image) == [f"{number:04d}.jpg" for number in range(12)]
    for image in (shown.image.iloc[0], shown.image.iloc[-1]):
        for pack in depth.packs.values():
            assert pack.uri(image, "prediction") in page
    assert (
        "pictures of 12 of these 60 images" in page
        and "No pictures: runs of this task store none" in page
    )
    assert depth.worst(20).pictures().height > 100


@pytest.mark.parametrize("pairs", [("clip-ft",), ("clip-ft", "clipp")])
def test_a_pair_is_two_backbones_of_the_report(store, pairs):
    with pytest.raises(TrackingError, match="give two of clip-ft, cliptex"):
        build_report(ReportRequest(["paper"], tracking_uri=store.uri, pairs=pairs))


def differences(gains: np.ndarray, traits: dict, units: tuple[str, ...] = ()) -> ImageDifferences:
    images = tuple(map(str, range(len(gains))))
    columns = {"image": images, "a": gains, "b": 0 * gains, "difference": gains, "rank": 1}
    frame = ImageDifferences(columns)
    frame.scores = ImageScores(
        images, {}, lambda: gains, "score", 1, traits=lambda: traits, units=units
    )
    frame.packs = {}
    return frame


def test_traits_that_go_with_a_difference_are_named_and_others_are_not():
    rng = np.random.default_rng(0)
    noise = {f"noise {number}": rng.normal(size=100) for number in range(15)}
    size, rare = rng.normal(size=100), np.arange(100) < 19
    traits = {"size": size, "dark": -size + rng.normal(size=100), "rare": rare, **noise}
    table = differences(size + rng.normal(size=100), traits).traits().set_index("trait")
    favours = table["more of it favours"]
    assert favours[["size", "dark"]].tolist() == ["a", "b"] and "rare" not in favours
    assert set(favours[list(noise)]) == {"undecided"}
    # four views of each of thirty scenes are not 120 images
    scenes = {name: values[:30].repeat(4) for name, values in noise.items()}
    gains, units = rng.normal(size=30).repeat(4), tuple(map(str, range(30)))
    assert set(differences(gains, scenes, units).traits()["more of it favours"]) == {"undecided"}
