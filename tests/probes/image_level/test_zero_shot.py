"""Zero-shot: prompts, their averaging, and a backbone that can read colours."""

from dataclasses import replace

from probes.image_level.probe import ZERO_SHOT
from probes.image_level.text import class_names, templates_for
from probes.registry import DATASETS
from tests.probes import tiny_dense
from tests.probes.datasets import make
from tests.probes.whole_images import context


def test_which_templates():
    imagenet, imagefolder = DATASETS["imagenet"], DATASETS["imagefolder"]
    name, openai = templates_for("auto", imagenet)
    assert (name, len(openai)) == ("openai", 80)
    assert "a photo of a tench." in {template("tench") for template in openai}
    name, photo = templates_for("auto", imagefolder)
    assert (name, [template("x") for template in photo]) == ("photo", ["a photo of a x."])
    assert len(templates_for("openai-7", imagefolder)[1]) == 7


def test_readable_names_are_used(tmp_path):
    root = make.make_imagefolder(tmp_path, 0, 3)
    task = context(ZERO_SHOT, DATASETS["imagefolder"], root)
    named = tiny_dense.with_declared(task.data, classes=("dark_red",))
    assert class_names(replace(task, data=named)) == ("dark red",)
    for index, colour in enumerate(make.COLOURS):
        (root / f"val/{colour}").rename(root / f"val/n{index}")
    names = "".join(f"n{index}\t{colour}, colour\n" for index, colour in enumerate(make.COLOURS))
    for text, top1 in ((None, 0), (names, 100)):  # without names all are tied
        if text:
            (root / "wnid_to_name.txt").write_text(text)
        task = context(ZERO_SHOT, DATASETS["imagefolder"], root)
        assert ZERO_SHOT.run(task).metrics["top1"] == top1
