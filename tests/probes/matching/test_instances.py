"""Instance retrieval on tiny copies of its official layouts, where the right images are known."""

import numpy as np
import pytest
from scipy.io import loadmat

from cliptex_common.errors import UserError
from probes.base import with_units
from probes.datasets.check import prepare, survey
from probes.matching.instances import average_precision
from probes.matching.probe import RETRIEVAL
from probes.registry import DATASETS
from reports.per_image import image_scores
from tests.probes.datasets import make
from tests.probes.whole_images import context


@pytest.mark.parametrize(
    ("right", "positives", "trapezoids", "steps"),
    [
        ("1", 1, 1, 1),
        ("01", 1, 1 / 4, 1 / 2),
        ("1010", 2, (1 + (1 / 2 + 2 / 3) / 2) / 2, (1 + 2 / 3) / 2),
        ("1", 2, 1 / 2, 1 / 2),  # the other one is not in the gallery
        ("00", 1, 0, 0),
    ],
)
def test_average_precision(right, positives, trapezoids, steps):
    ranking = np.array([letter == "1" for letter in right])
    assert average_precision(ranking, positives, "trapezoids") == pytest.approx(trapezoids)
    assert average_precision(ranking, positives, "steps") == pytest.approx(steps)


def test_queries_are_cropped_unless_the_setting_says_otherwise(tmp_path):
    root = make.make_revisited(tmp_path / "data")
    task = context(RETRIEVAL, DATASETS["roxford5k"], root, size=32)
    result = RETRIEVAL.run(task)
    assert result.metrics == {"mAP_hard": 100, "mAP_medium": 100, "mAP_easy": 100}
    assert result.per_image["image"].tolist() == [f"jpg/{c}_query.jpg" for c in make.COLOURS]
    # 48 × 40 pixels, and boxes of 36 × 40, with their shape
    assert {tuple(shape[2:]) for shape in task.backbone.seen} == {(28, 32), (32, 28)}
    whole = RETRIEVAL.run(
        context(RETRIEVAL, DATASETS["roxford5k"], root, size=32, crop_queries=False)
    )
    assert whole.metrics["mAP_medium"] < 80, "most of a query is grey"
    square = context(RETRIEVAL, DATASETS["roxford5k"], root, resize="square")
    assert RETRIEVAL.run(square).metrics == result.metrics
    assert {tuple(shape[2:]) for shape in square.backbone.seen} == {(32, 32)}


def test_amstertime_searches_both_ways(tmp_path):
    spec, root = DATASETS["amstertime"], make.make_amstertime(tmp_path / "data")
    task = context(RETRIEVAL, spec, root, size=32)
    result = with_units(RETRIEVAL.run(task), task.data)
    places = dict(zip(result.per_image["image"], result.per_image["AP_all"], strict=True))
    assert len(places) == 8 and places["new/0002.png"] == places["old/0003.jpg"] == 100
    assert places["new/0000.png"] < 100 and places["old/0001.jpg"] < 100
    assert result.metrics == {"mAP_all": pytest.approx(np.mean(list(places.values())))}
    scores = image_scores("instance-retrieval", result.per_image)
    assert scores.units == ("0000", "0001", "0002", "0003"), "both images of a place together"
    assert scores.metrics["mAP_all"](np.array([[0.0, 0.0, 1.0, 2.0]]))[0] == 100
    (root / "old/0003.jpg").unlink()
    with pytest.raises(UserError, match="0003 in only one of new and old"):
        prepare(spec, root, splits={"val": None})


def test_a_query_without_positives_counts_nowhere(tmp_path):
    spec, root = DATASETS["rparis6k"], make.make_revisited(tmp_path / "data", "rparis6k")
    content = loadmat(root / "gnd_rparis6k.mat", simplify_cells=True)
    entries = [dict(entry) for entry in content["gnd"]]
    entries[0]["hard"] = []
    make.write_ground_truth(
        root / "gnd_rparis6k.mat", content["imlist"], content["qimlist"], entries
    )
    result = RETRIEVAL.run(context(RETRIEVAL, spec, root, size=32))
    assert result.metrics["mAP_hard"] == 100
    assert result.per_image["AP_hard"].tolist() == [-1, 100, 100, 100]
    scores = image_scores("instance-retrieval", result.per_image)
    assert scores.value("mAP_hard") == 100 and scores.finite.all()


def test_a_list_with_an_absent_file_is_not_complete(tmp_path):
    spec, root = DATASETS["roxford5k"], make.make_revisited(tmp_path)
    (root / "jpg/red_000001.jpg").unlink()
    with pytest.raises(UserError, match=r"15 of 5063.*such as jpg/red_000001\.jpg"):
        prepare(spec, root, splits={"val": None})


def test_data_check_asks_for_no_train_split(tmp_path):
    make.make_revisited(tmp_path / "roxford5k")
    (row,) = survey(tmp_path, {}, only=["roxford5k"], full=True)
    assert row.state == "partial" and row.counts == {"val": 16} and not row.message
