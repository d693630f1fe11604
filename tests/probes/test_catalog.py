"""All datasets and probes are registered by one import, and every probe keeps the contract."""

import dataclasses

import pytest

from cliptex_common.errors import UserError
from cliptex_common.files import canonical_json
from probes.datasets.base import DatasetSpec
from probes.datasets.ground_truth import KINDS as OTHER_KINDS
from probes.datasets.ground_truth import class_of
from probes.dense.tasks import DENSE_TASKS
from probes.registry import DATASETS, PROBES, find_task, register_dataset

KINDS = (*DENSE_TASKS, *OTHER_KINDS)


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match="voc/pspnet"):
        find_task("voc/pspent")


def test_a_dataset_of_a_kind_that_no_probe_is_for():
    DATASETS["leaves"] = DatasetSpec("leaves", "segmentations", "leaves", lambda root, split: [])
    try:
        with pytest.raises(UserError, match=r"'segmentations'.*did you mean segmentation"):
            find_task("leaves/linear")
    finally:
        del DATASETS["leaves"]


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("depth", "min_depth"), ("normals", "invalid"), ("instance-retrieval", "average_precision")],
)
def test_a_dataset_that_does_not_declare_what_its_kind_needs(kind, missing):
    declared = (DENSE_TASKS.get(kind) or class_of(kind)).declared
    extra = dict.fromkeys(declared.keys() - {missing}, 0)
    with pytest.raises(UserError, match=f"'rooms' does not declare.*: {missing}, "):
        register_dataset(DatasetSpec("rooms", kind, "rooms", lambda root, split: [], extra=extra))
    assert "rooms" not in DATASETS


@pytest.mark.parametrize("name", PROBES)
def test_probes_keep_the_contract(name):
    probe = PROBES[name]
    assert probe.kind in KINDS and probe.metrics and probe.version >= 1
    assert {metric.direction for metric in probe.metrics.values()} <= {1, -1}
    assert probe.splits in (("train", "val"), ("val",))
    settings = probe.settings_type()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, dataclasses.fields(settings)[0].name, None)


def test_datasets_in_one_folder_declare_that_they_share_images():
    """Reports draw the images of a set alike in all of its datasets."""
    sets: dict[str, set[str]] = {}
    for spec in DATASETS.values():
        if not (spec.is_generated or spec.name.startswith("tiny-")):
            sets.setdefault(spec.folder, set()).add(spec.image_set or spec.name)
    assert not {folder: names for folder, names in sets.items() if len(names) > 1}
    assert sets["imagenet"] == sets["imagenet-c"] == {"imagenet"}
    assert sets["coco"] == sets["coco_stuff164k"] == {"coco"}


# those of other tests are registered where they run in the same process
@pytest.mark.parametrize("name", [name for name in DATASETS if not name.startswith("tiny-")])
def test_datasets_keep_the_contract(name):
    spec = DATASETS[name]
    assert spec.kind in KINDS and spec.about and "\n" not in spec.about
    assert set(spec.expected) <= {"train", "val"}
    assert "object at 0x" not in canonical_json(dict(spec.extra))
