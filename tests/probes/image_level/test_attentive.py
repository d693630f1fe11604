"""The attentive probe: it reads the patches, not only their mean, and ends the same wherever it
goes on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import probes.catalog  # noqa: F401
from common.errors import UserError
from probes.image_level import random_crops
from probes.image_level.probe import ATTENTIVE, LINEAR
from probes.image_level.settings import AttentiveSettings
from probes.registry import DATASETS
from tests.probes.whole_images import Bar, Colours, context

SMALL = {
    "learning_rates": (0.00001, 0.02),
    "epochs": 12,
    "batch_size": 16,
    "size": 32,
    "holdout": 0.25,
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Classes differ by whether a red and a green patch come together, or two of both in one: their
    means agree."""
    monkeypatch.setenv("CLIPTEX_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for name, pair in (
            ("mixed", ([200, 200, 0], [0, 0, 0])),
            ("pure", ([200, 0, 0], [0, 200, 0])),
        ):
            for index in range(count):
                cells = np.zeros((4, 4, 3), np.uint8)
                cells[:] = np.where(rng.permutation(16).reshape(4, 4, 1) % 2, *np.array(pair))
                path = tmp_path / "images" / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(cells.repeat(8, 0).repeat(8, 1)).save(path)
    return tmp_path / "images"


def around(root, **change):
    return context(
        ATTENTIVE, DATASETS["imagefolder"], root, backbone=Colours(cnn=True), **{**SMALL, **change}
    )


def test_it_sees_what_a_mean_does_not(root):
    made = around(root)
    result = ATTENTIVE.run(made)
    linear = LINEAR.run(
        context(
            LINEAR, DATASETS["imagefolder"], root, backbone=Colours(cnn=True), size=32, epochs=5
        )
    )
    assert linear.metrics["top1"] < 80  # on the means
    assert result.metrics["top1"] == 100.0
    assert result.notes[0].startswith(
        "learning rate 0.02: best of 2 on 6 held-out training images (top1 100.0)"
    )
    assert "the highest rate of its grid" in result.notes[0]
    assert {"train/loss", "select/top1/lr_0.02"} <= {
        name for _, found in made.log.curves for name in found
    }
    assert result.cost["train_flops"] > 0 and result.cost["encode_images_per_second"] > 0
    assert ATTENTIVE.run(around(root)).metrics == result.metrics


def test_stopped_and_gone_on_it_ends_the_same(root, monkeypatch):
    monkeypatch.setattr(random_crops, "SAVE_EVERY", 0.0)
    whole = around(root, epochs=3)
    wanted = ATTENTIVE.run(whole)

    class Stop(Bar):
        def advance(self, steps=1):
            super().advance(steps)
            if self.done == 4:
                raise KeyboardInterrupt

    cut = around(root, epochs=3)
    (cut.work_dir / "heads.pt").unlink()
    object.__setattr__(cut, "progress", Stop())
    with pytest.raises(KeyboardInterrupt):
        ATTENTIVE.run(cut)
    on = around(root, epochs=3)
    result = ATTENTIVE.run(on)
    assert result.metrics == wanted.metrics and result.notes == wanted.notes
    assert on.log.curves == [curve for curve in whole.log.curves if curve[0] > 3 or curve[0] == 0]


def test_wrong_settings_are_said():
    with pytest.raises(UserError, match="learning_rates="):
        AttentiveSettings(learning_rates=())
    with pytest.raises(UserError, match="holdout="):
        AttentiveSettings(holdout=1.0)
