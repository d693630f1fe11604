"""Segmentation without training: shares of patches, what lies between them, and probes that learn
what colours mean."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import interpolate, normalize

import probes.catalog  # noqa: F401
from common.errors import UserError
from probes.dense.data import read_labels
from probes.dense.metrics import class_areas, segmentation_scores
from probes.dense.patches.images import Patches, PatchImages, class_shares, label_map
from probes.dense.patches.in_context import attend
from probes.dense.patches.logreg import fit
from probes.dense.patches.memory import remember
from probes.dense.patches.open_vocabulary import class_synonyms
from probes.dense.patches.settings import InContextSettings, LogregSettings
from probes.features.cost import EncodeRun
from probes.features.store import root
from probes.registry import PROBES
from reports.stats.per_image import image_scores
from tests.probes import tiny_dense
from tests.probes.tiny_mmlab import context
from tests.probes.whole_images import Colours

SMALL = {"patch-knn": {"neighbours": (1, 3)}, "logreg": {"c": (0.01, 1.0)}, "in-context": {}}


def prepare(folder, name, backbone="tiny-cnn", data=None, seed=0, **settings):
    probe = PROBES[f"segmentation/{name}"]
    data = data or tiny_dense.make(folder / "data", "segmentation", train=6, val=3)
    return probe, context(
        folder / "work", data, probe.settings_type(**{"size": 48, **settings}), backbone, seed=seed
    )


def patches_of(grid, shown, size, features=None):
    return Patches(
        0, torch.zeros(grid[0] * grid[1], 1) if features is None else features, grid, shown, size
    )


def test_shares_count_the_label_maps_own_pixels():
    truth = torch.tensor(
        [[0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 2, 2, 255, 255], [255, 255, 255, 0, 1, 1, 1, 1]]
    )
    truth = truth.repeat_interleave(2, dim=0)
    found, known = class_shares(truth, patches_of((3, 2), (3.0, 2.0), (6, 8)), 3, 255)
    wanted = [[2, 2, 0], [0, 0, 4], [1, 3, 0], [0, 0, 2], [1, 0, 0], [0, 4, 0]]
    assert torch.allclose(
        found, torch.tensor(wanted).float() / torch.tensor([4, 4, 4, 2, 1, 4])[:, None]
    )
    assert known.tolist() == [True, True, True, True, False, True]


def test_shares_of_a_grid_that_reaches_beyond_the_image():
    """An image of 1.5 × 1.25 cells: a pixel belongs to the cell that its centre lies in."""
    truth = torch.arange(12).view(3, 4).expand(3, 4)
    found, _ = class_shares(truth, patches_of((2, 2), (1.5, 1.25), (3, 4)), 12, 255)
    rows, columns = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0, 1])
    for row in range(3):
        for column in range(4):
            assert found[2 * rows[row] + columns[column], 4 * row + column] > 0


def test_between_patches_scores_are_bilinear():
    scores = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    found = label_map(scores, patches_of((3, 4), (3.0, 4.0), (50, 70)))
    wanted = interpolate(
        scores.T.view(1, 5, 3, 4), size=(50, 70), mode="bilinear", align_corners=False
    )[0].argmax(dim=0)
    assert (found == wanted).float().mean() > 0.999
    cut = label_map(scores, patches_of((3, 4), (2.5, 4.0), (50, 70)))
    whole = interpolate(
        scores.T.view(1, 5, 3, 4), size=(60, 70), mode="bilinear", align_corners=False
    )[0].argmax(dim=0)
    assert (cut == whole[:50]).float().mean() > 0.999
    assert label_map(
        torch.eye(3)[:1], patches_of((1, 1), (0.5, 1.0), (4, 6))
    ).unique().tolist() == [0]


@pytest.mark.parametrize("backbone", ["tiny-cnn", "tiny-vit14"])
@pytest.mark.parametrize("name", list(SMALL))
def test_it_learns_what_colours_mean(tmp_path, name, backbone):
    probe, made = prepare(tmp_path, name, backbone, **SMALL[name], memory=600, size=128)
    result = probe.run(made)
    assert result.metrics["mIoU"] > 40, "a constant has 20 at most"
    assert result.metrics["aAcc"] > 65
    assert result.preview.is_file() and result.preview.with_name("gallery.zip").is_file()
    assert result.per_image["image"].tolist() == [
        sample.image for sample in made.data.samples["val"]
    ]
    scores = image_scores("segmentation", result.per_image)
    for metric, value in result.metrics.items():
        assert scores.metrics[metric](np.ones((1, 3)))[0] == pytest.approx(value)
    assert made.cost.metrics()["encode_seconds"] > 0
    images = made.cost.images["encode"]
    again = probe.run(made)
    assert again.metrics == result.metrics and again.notes == result.notes
    assert made.cost.images["encode"] == images, "features are cached"
    assert any("patches" in note for note in result.notes)
    if name != "in-context":
        assert any(
            "best of" in note and "held-out training images" in note for note in result.notes
        )


def test_val_has_no_say_in_what_is_chosen(tmp_path):
    probe, made = prepare(tmp_path, "patch-knn", neighbours=(1, 3, 9))
    before = probe.run(made).notes[0]
    for sample in made.data.samples["val"]:
        path = made.data.root / sample.target
        tiny_dense.cv2.imwrite(str(path), np.zeros_like(tiny_dense.cv2.imread(str(path), -1)))
    assert probe.run(made).notes[0] == before


def test_without_room_features_are_encoded_each_time(tmp_path, monkeypatch):
    probe, made = prepare(tmp_path, "in-context", cache="fp32")
    kept = probe.run(made)
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("CLIPTEX_CACHE_GB", "0.0000001")
    fresh = probe.run(made)
    assert not list(root().glob("*/manifest.json"))
    assert fresh.metrics == pytest.approx(kept.metrics, abs=0.5)
    assert fresh.per_image["image"].tolist() == kept.per_image["image"].tolist()


def test_the_memory_is_drawn_by_the_seed(tmp_path):
    _, made = prepare(tmp_path, "in-context", memory=30)
    first, _ = remember(made, choosing=False)
    assert len(first) == 30 and first.owner.bincount().tolist() == 6 * [5]
    same, _ = remember(made, choosing=False)
    assert torch.equal(first.features, same.features)
    _, other = prepare(tmp_path, "in-context", data=made.data, memory=30, seed=1)
    assert not torch.equal(first.features, remember(other, choosing=False)[0].features)
    _, few = prepare(tmp_path, "in-context", data=made.data, memory=10**6)
    whole, held = remember(few, choosing=True)
    assert len(held) == 1 and held[0].labels.shape == (48, 64)
    left = whole.without([held[0].patches.index])
    assert 0 < len(left) < len(whole) and held[0].patches.index not in left.owner
    assert torch.allclose(whole.shares.float().sum(dim=1), torch.ones(len(whole)), atol=1e-2)


def test_a_memory_of_the_answers_is_right(tmp_path):
    """Where val is train, the nearest neighbour of a patch is itself: what is left is the size of
    patches."""
    data = tiny_dense.make(tmp_path / "data", "segmentation", train=3, val=3)
    same = {"train": data.samples["train"], "val": data.samples["train"]}
    _, made = prepare(
        tmp_path,
        "patch-knn",
        data=replace(data, samples=same),
        neighbours=(1,),
        distances=("cosine",),
    )
    images = PatchImages(made, "train")
    areas = []
    for patches in images.walk(EncodeRun.of(made)):
        truth = images.labels(patches)
        share, _ = class_shares(truth, patches, 3, 255)
        areas.append(class_areas(label_map(share, patches), truth, 3, 255))
        stored = read_labels(
            str(made.data.root / data.samples["train"][patches.index].target), 0, 255, 3
        )
        assert np.array_equal(truth.numpy(), stored)
    best = segmentation_scores(
        {name: torch.stack([a[name] for a in areas]).numpy() for name in areas[0]}
    )[0]["mIoU"]
    assert best > 70


def test_logistic_regression_is_scikit_learns():
    random = torch.Generator().manual_seed(0)
    features, labels = (
        torch.randn(300, 6, generator=random),
        torch.randint(4, (300,), generator=random),
    )
    features[:, 0] += labels
    for c in (0.003, 1.0):
        theirs = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(
            features.numpy(), labels.numpy()
        )
        ours = fit(features, labels, 4, c, LogregSettings(tolerance=1e-7))
        wanted = torch.from_numpy(theirs.predict_log_proba(features.numpy())).float()
        torch.testing.assert_close(
            ours.logits(features).log_softmax(dim=1), wanted, atol=1e-2, rtol=0
        )
        one = LogregSettings(iterations=1)
        near, far = (
            (fit(features, labels, 4, c, one, start).weight - ours.weight).abs().max()
            for start in (ours, None)
        )
        assert near < 1e-3 < far, "it goes on from where it is told to"


def test_attention_over_all_of_the_memory_is_a_softmax():
    random = torch.Generator().manual_seed(0)
    queries, keys = (
        torch.randn(5, 8, generator=random),
        normalize(torch.randn(20, 8, generator=random), dim=1),
    )
    values = torch.rand(20, 3, generator=random)
    found = attend(queries, keys, values, InContextSettings(neighbours=20))
    wanted = (normalize(queries, dim=1) @ keys.T / 0.02).softmax(dim=1) @ values
    torch.testing.assert_close(found, wanted)
    one = attend(queries, keys, values, InContextSettings(neighbours=1))
    torch.testing.assert_close(one, values[(normalize(queries, dim=1) @ keys.T).argmax(dim=1)])


class DenseColours(Colours):
    """Reads colours, and sees them cell by cell."""

    @property
    def has_dense_text(self):
        return True

    def encode_dense(self, images):
        cells = (self(images)[-1] * self.std.view(3, 1, 1)).permute(0, 2, 3, 1)
        return (cells @ self.projection).permute(0, 3, 1, 2)


def test_open_vocabulary_reads_what_it_sees(tmp_path):
    probe, made = prepare(tmp_path, "open-vocabulary", templates="photo")
    made = replace(made, backbone=DenseColours())
    result = probe.run(made)
    assert result.metrics["mIoU"] > 80
    assert result.notes[0] == "prompts: photo (1 for each of 3 names)"
    assert result.preview.is_file()
    assert probe.splits == ("val",) and probe.needs_text and probe.needs_dense_text


def test_names_of_classes():
    names = class_synonyms(
        ("background", "potted plant", "wall-brick", "door;double door"),
        ("sky", "sea"),
    )
    assert names == [["sky", "sea"], ["potted plant"], ["wall brick"], ["door", "double door"]]
    assert class_synonyms(("background",), ()) == [["background"]]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("patch-knn", {"neighbours": ()}),
        ("patch-knn", {"distances": ("l1",)}),
        ("logreg", {"c": (0.0,)}),
        ("in-context", {"temperature": 0.0}),
        ("in-context", {"size": 4}),
        ("in-context", {"cache": "none"}),
        ("open-vocabulary", {"size": 4}),
        ("open-vocabulary", {"precision": "fp8"}),
    ],
)
def test_settings_that_are_not_possible(name, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        PROBES[f"segmentation/{name}"].settings_type(**wrong)
