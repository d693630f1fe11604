"""Likeness on a tiny copy of NIGHTS' layout, where people choose the image of the same colour."""

import pytest
import torch

from cliptex_common.errors import UserError
from probes.datasets.check import prepare, survey
from probes.matching.likeness import LIKENESS
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import Colours, context


def test_scores_are_by_subsets_of_the_official_split(tmp_path):
    task = context(LIKENESS, DATASETS["nights"], make.make_nights(tmp_path / "data", wrong=(0, 5)))
    result = LIKENESS.run(task)
    assert result.metrics == pytest.approx(
        {"2AFC": 100 * 4 / 6, "2AFC_imagenet": 50, "2AFC_no_imagenet": 75}
    )
    assert result.notes == ["6 triplets; chance 50, highest with these votes 100"]
    assert (result.per_image["margin"] < 0).tolist() == [True, *[False] * 4, True]


def test_features_that_are_all_equal_have_the_score_of_chance(tmp_path):
    class Blind(Colours):
        def encode_image(self, images):
            return torch.ones(len(images), self.embed_dim)

    spec, root = DATASETS["nights"], make.make_nights(tmp_path / "data")
    result = LIKENESS.run(context(LIKENESS, spec, root, backbone=Blind()))
    assert result.metrics["2AFC"] == 50
    assert "equally near in 6 triplets" in result.notes[1]


def test_a_missing_image_and_a_malformed_table(tmp_path):
    spec, root = DATASETS["nights"], make.make_nights(tmp_path / "nights")
    (root / "distort/000/003_1.png").unlink()
    with pytest.raises(UserError, match=r"003_1\.png"):
        prepare(spec, root, splits={"val": None})
    data = prepare(spec, root, splits={"val": None}, partial=True)
    assert len(data.samples["val"]) == 5
    (row,) = survey(tmp_path, {}, only=["nights"])
    assert row.counts == {"val": 5} and row.state == "partial"
    table = (root / "data.csv").read_text()
    (root / "data.csv").write_text(table.replace("right_vote", "votes_right"))
    with pytest.raises(UserError, match=r"data\.csv is not the table of NIGHTS"):
        prepare(spec, root, splits={"val": None})
