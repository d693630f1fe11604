"""The view of an experiment in MLflow's UI, and the tag that names its columns."""

from __future__ import annotations

from reports.mlflow.client import MAX_TAG
from reports.mlflow.views import main_tag


def test_a_tag_that_is_too_long_has_whole_names_and_the_number_of_the_others():
    names = [f"camvid/patch-knn:layers={n}:size=224/mIoU" for n in range(300)]
    assert main_tag(names[:2]) == ",".join(names[:2])
    tag = main_tag(names)
    *present, more = tag.split(",")
    assert len(tag) <= MAX_TAG and present == names[: len(present)]
    assert more == f"{300 - len(present)} more"
