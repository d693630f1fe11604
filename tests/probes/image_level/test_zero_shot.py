"""Zero-shot: prompts, their averaging, and a backbone that can read colours."""

import pytest
import torch

import probes.catalog  # noqa: F401
from common.errors import UserError
from probes.image_level.probe import ZERO_SHOT
from probes.image_level.zero_shot import class_names, embed_names, templates_for
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import Colours, context


@pytest.mark.parametrize("templates", ["auto", "photo", "openai", "openai-7"])
def test_it_reads_colours(tmp_path, templates):
    root = make.make_imagefolder(tmp_path, 0, 3)
    task = context(ZERO_SHOT, DATASETS["imagefolder"], root, templates=templates)
    result = ZERO_SHOT.run(task)
    assert result.metrics["top1"] == 100.0
    assert (result.per_image["rank"] == 0).all()
    assert result.per_image["image"].tolist() == [s.image for s in task.data.samples["val"]]


def test_readable_names_are_what_it_reads(tmp_path):
    """Folders that say nothing: with their names it reads, without it cannot."""
    root = make.make_imagefolder(tmp_path, 0, 3)
    for index, colour in enumerate(make.COLOURS):
        (root / f"val/{colour}").rename(root / f"val/n{index}")
    unreadable = context(ZERO_SHOT, DATASETS["imagefolder"], root)
    assert ZERO_SHOT.run(unreadable).metrics["top1"] == 0  # all tied
    (root / "wnid_to_name.txt").write_text(
        "".join(f"n{i}\t{c}, colour\n" for i, c in enumerate(make.COLOURS))
    )
    readable = context(ZERO_SHOT, DATASETS["imagefolder"], root)
    assert ZERO_SHOT.run(readable).metrics["top1"] == 100


def test_which_templates():
    imagenet, imagefolder = DATASETS["imagenet"], DATASETS["imagefolder"]
    name, openai = templates_for("auto", imagenet)
    assert (name, len(openai)) == ("openai", 80)
    assert "a photo of a tench." in {template("tench") for template in openai}
    name, photo = templates_for("auto", imagefolder)
    assert (name, [template("x") for template in photo]) == ("photo", ["a photo of a x."])
    assert len(templates_for("openai-7", imagefolder)[1]) == 7


def test_class_embeddings_are_means_of_unit_vectors(tmp_path):
    class Lengths(Colours):
        def encode_text(self, texts):
            return torch.tensor(
                [[len(text), float(text.count("e")), 1, 0, 0, 0, 0, 0] for text in texts]
            )

    root = make.make_imagefolder(tmp_path, 0, 1, classes=["red", "dark_green"])
    task = context(ZERO_SHOT, DATASETS["imagefolder"], root, backbone=Lengths())
    templates = ["{}".format, "the {} one".format, "see {}!".format]
    embeddings = embed_names(task, class_names(task), templates)
    expected = []
    for name in ("dark green", "red"):
        each = Lengths().encode_text([template(name) for template in templates])
        mean = sum(vector / vector.norm() for vector in each) / 3
        expected.append(mean / mean.norm())
    torch.testing.assert_close(embeddings, torch.stack(expected))


def test_a_backbone_without_text_is_refused(tmp_path):
    class Blind(Colours):
        has_text = False

        def encode_text(self, texts):
            return super(Colours, self).encode_text(texts)

    task = context(
        ZERO_SHOT, DATASETS["imagefolder"], make.make_imagefolder(tmp_path, 0, 1), backbone=Blind()
    )
    with pytest.raises(UserError, match="no text tower"):
        ZERO_SHOT.run(task)
