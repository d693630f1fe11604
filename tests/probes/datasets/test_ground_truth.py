"""The ground truth of each kind of dataset: what of it is hashed, and that it travels."""

import dataclasses
import json
import pickle

import pytest

from cliptex_common.errors import UserError
from cliptex_common.files import canonical_json
from probes.datasets.base import DatasetSpec, Sample
from probes.datasets.check import prepare
from probes.datasets.ground_truth import (
    KINDS,
    Associations,
    Boxes,
    Captions,
    Correspondences,
    GalleryImage,
    ImageSet,
    KeypointPair,
    MapFile,
    ObjectMasks,
    Question,
    View,
    class_of,
    ground_truth,
)
from probes.dense.tasks import DENSE_TASKS
from probes.registry import DATASETS, PROBES
from tests.probes.datasets import make

POINTS, IDENTITY = [[1, 2]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
QUERY = GalleryImage("old", "new", positives={"all": ["b.jpg"]}, junk={"all": []})
# fingerprints and the names of cached results are hashed from these
LISTED = [
    ("classification", 3, "3", []),
    ("classification", [3, 5], "[3,5]", []),
    ("unknown-images", ImageSet("near/ninco"), '"near/ninco"', []),
    ("image-text", Captions(["a cat"]), '["a cat"]', []),
    ("association", Associations([Question(0, "red", True)]), '[[0,"red",true]]', []),
    (
        "correspondence",
        Correspondences([KeypointPair("b.jpg", POINTS, POINTS, [0, 0, 9, 9])]),
        '[{"box":[0,0,9,9],"image":"b.jpg","source":[[1,2]],"target":[[1,2]]}]',
        [],
    ),
    ("instance-retrieval", GalleryImage("old"), '{"gallery":"old"}', []),
    (
        "instance-retrieval",
        QUERY,
        '{"gallery":"old","junk":{"all":[]},"positives":{"all":["b.jpg"]},"searches":"new"}',
        [],
    ),
    ("video", ObjectMasks("masks/0.png"), '"masks/0.png"', ["masks/0.png"]),
    (
        "object-views",
        View(IDENTITY, [0, 0, 1], 1.5, [], "depth/a.png"),
        f'{{"camera":1.5,"pairs":[],"rotation":{canonical_json(IDENTITY)},"translation":[0,0,1]}}',
        ["depth/a.png"],
    ),
    ("a-plugin's", {"x": 1}, '{"x":1}', []),
]


def spec_of(kind: str) -> DatasetSpec:
    return DatasetSpec("toy", kind, "toy", lambda root, split: [])


@pytest.mark.parametrize(("kind", "target", "listed", "files"), LISTED)
def test_ground_truth_is_hashed_as_json_and_travels(kind, target, listed, files):
    sample = pickle.loads(pickle.dumps(Sample("a.jpg", target)))
    assert sample.target == target
    truth = ground_truth(spec_of(kind), sample)
    assert canonical_json(truth.listed) == listed and json.loads(listed) is not None
    assert truth.files == files


def test_every_kind_that_a_probe_is_for_has_a_class():
    assert {probe.kind for probe in PROBES.values()} <= {*KINDS, *DENSE_TASKS}
    assert {class_of(kind) for kind in DENSE_TASKS} == {MapFile}
    assert ground_truth(spec_of("depth"), Sample("a.jpg", "a.png")).files == ["a.png"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Boxes(1).image_id = 2  # type: ignore[misc]


def test_a_target_of_another_class_is_refused(tmp_path):
    spec, root = DATASETS["flickr30k"], make.make_flickr(tmp_path)

    def plain(root, split):
        samples = spec.list_samples(root, split)
        return [Sample(sample.image, sample.target.texts) for sample in samples]

    wrong = dataclasses.replace(spec, list_samples=plain)
    with pytest.raises(UserError, match=r"kind image-text.*ground_truth\.Captions"):
        prepare(wrong, root, partial=True)
