"""Zero-shot: prompts, their averaging, and a backbone that can read colours."""

import torch

import probes.catalog  # noqa: F401
from probes.image_level.probe import ZERO_SHOT
from probes.image_level.text import class_names, embed_names, templates_for
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import Colours, context


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


def test_readable_names_are_used(tmp_path):
    root = make.make_imagefolder(tmp_path, 0, 3)
    for index, colour in enumerate(make.COLOURS):
        (root / f"val/{colour}").rename(root / f"val/n{index}")
    names = "".join(f"n{index}\t{colour}, colour\n" for index, colour in enumerate(make.COLOURS))
    for text, top1 in ((None, 0), (names, 100)):  # without names all are tied
        if text:
            (root / "wnid_to_name.txt").write_text(text)
        task = context(ZERO_SHOT, DATASETS["imagefolder"], root)
        assert ZERO_SHOT.run(task).metrics["top1"] == top1
