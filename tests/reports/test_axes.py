"""Scores over a setting: which columns are one task's, what is best, where features change mode."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from reports.records import PARTS
from reports.relations import axis_figures, best_values, mode_changes
from tests.reports.synthetic import stored_run

pytestmark = pytest.mark.integration

TASKS = {
    "voc/linear:0.01": {"train_share": "0.01"},
    "voc/linear": {},
    "voc/linear:0.1": {"train_share": "0.1"},
    "pets/few-shot:1": {"shots": "1"},
    "pets/few-shot": {"shots": "10"},
    "ade20k/linear": {},
}


def test_a_curve_for_each_task_with_variants(analysis_of):
    qualities = {"clip": 50.0, "mine": 60.0}
    analysis = analysis_of(
        [
            stored_run(name, task, 0, quality + len(params), protocol=task, params=params)
            for name, quality in qualities.items()
            for task, params in TASKS.items()
        ]
    )
    shots, share = sorted(axis_figures(analysis), key=lambda figure: figure.title)
    assert (share.title, shots.title) == ("voc/linear", "pets/few-shot")
    assert [line["x"] for line in share.spec["data"]] == [[0.01, 0.1, 1.0]] * 2
    assert share.spec["layout"]["xaxis"]["ticktext"] == ["1 %", "10 %", "100 %"]
    assert [line["x"] for line in shots.spec["data"]] == [[1.0, 10.0]] * 2
    assert "training images of each class" in shots.caption
    assert "clip: 51.00 (no interval) at 1 %" in share.alt
    assert len(analysis.tasks("mine")) == 3
    gain = analysis.gains["mine"]
    gains = {column.task: analysis.task_gains["mine", column].value for column in gain.columns}
    means = []
    for base in ("voc", "pets", "ade20k"):
        values = [value for task, value in gains.items() if task.startswith(base)]
        means.append(sum(values) / len(values))
    assert gain.mean.value == pytest.approx(sum(means) / 3)


class Parts:
    """A store whose cells have the features of image parts at their size."""

    def __init__(self, features):
        self.features = features

    def arrays(self, cell, name):
        size = cell.task.rpartition("=")[2]
        assert name == PARTS
        return {"features": self.features[size]} if size in self.features else {}


def profile(analysis_of, held_out):
    """A backbone at two layers and three sizes; layer 6 at 448 px is best on held-out images."""
    runs = []
    for layer, size in itertools.product((3, 6), (224, 448, 672)):
        task = f"voc/patch-knn:layers={layer}:size={size}"
        quality = 50.0 + (layer == 6) + 5 * (size == 224)
        best = 70.0 + (layer == 6) + (size == 448)
        scores = {"mIoU/10_cosine": best, "mIoU/30_cosine": best - 9} if held_out else {}
        runs.append(stored_run("mine", task, 0, quality, protocol=task, held_out=scores))
    return analysis_of(runs)


def test_a_figure_for_each_axis_with_a_line_for_each_other_value(analysis_of):
    layers, size = axis_figures(profile(analysis_of, held_out=True))
    assert [line["name"] for line in size.spec["data"]] == ["mine, layers=3", "mine, layers=6"]
    assert [line["x"] for line in size.spec["data"]] == [[224, 448, 672]] * 2
    assert [line["x"] for line in layers.spec["data"]] == [[3, 6]] * 3


@pytest.mark.parametrize(
    "places",
    [
        {"pre_projection": 0, "projected": 1, "6": 2, "12": 3},
        {"6": 0, "50": 1, "50%": 2},
        {"25%": 25, "50%": 50},
    ],
)
def test_each_value_has_its_own_place_on_the_axis(places, analysis_of):
    tasks = [f"voc/linear:layers={value}" for value in places]
    runs = [stored_run("a", task, 0, 50.0, protocol=task) for task in tasks]
    (figure,) = axis_figures(analysis_of(runs[::-1]))
    axis = figure.spec["layout"]["xaxis"]
    assert axis["tickvals"] == figure.spec["data"][0]["x"] == [*places.values()]
    assert {*axis["ticktext"]} == {*places}


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        (True, "layers=6, size=448 is best of 6, chosen on held-out training images (mIoU 72.0)"),
        (False, "mIoU on val is best at layers=6, size=224 (56.0 (no interval)); this is not a"),
    ],
)
def test_the_best_value_is_chosen_on_held_out_images_or_called_no_choice(
    held_out, words, analysis_of
):
    (line,) = best_values(profile(analysis_of, held_out))
    assert line.startswith("mine · voc/patch-knn: ") and words in line


def test_features_that_are_others_above_a_size_are_named(analysis_of):
    parts = np.random.default_rng(0).normal(size=(4, 2, 16, 32))
    features = {"224": parts[0], "448": parts[0] + 0.3 * parts[1], "672": parts[2]}
    (line,) = mode_changes(Parts(features), profile(analysis_of, held_out=True))
    assert "features change mode between 448 and 672 px at layers=3; layers=6" in line


def test_upsamplers_are_shown_as_gains_over_bilinear_with_what_an_image_costs(analysis_of):
    costs = {"encode_images_per_second": 8.0, "eval_images_per_second": 8.0}
    runs = []
    for name in ("mine", "other"):
        for upsampler, quality in (("bilinear", 50.0), ("jbu", 52.0), ("nearest", 49.0)):
            task = f"voc/linear:upsampler={upsampler}"
            runs.append(stored_run(name, task, 0, quality, protocol=task, costs=costs))
    (figure,) = axis_figures(analysis_of(runs))
    assert figure.spec["layout"]["xaxis"]["ticktext"] == ["bilinear", "jbu", "nearest"]
    line = figure.spec["data"][0]
    assert line["x"] == [1.0, 2.0] and line["y"] == [2.0, -1.0]
    assert "at jbu, 0.25 s an image" in line["text"][0]
    assert "mine: bilinear, 0.25 s an image" in figure.alt
    assert "gain over bilinear" in figure.caption and "paired" in figure.caption
