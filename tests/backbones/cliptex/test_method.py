"""What a reader of the method may change: schedules of λ, layers of the heads, tasks without
labels; and the page that says which function computes what."""

from __future__ import annotations

import re
from dataclasses import replace
from pkgutil import resolve_name

import pytest
import torch

import backbones
from backbones.cliptex import losses
from backbones.cliptex.model import CLIPWithHeads
from backbones.cliptex.objective import weighted_losses
from backbones.cliptex.targets import Task
from backbones.cliptex.tasks import TASKS, find_label_map
from cliptex_common.errors import UserError
from tests.backbones.cliptex import toy
from tests.backbones.cliptex.test_fourth_task import ROOT
from tests.backbones.cliptex.test_train import CLIPTEX, run

pytestmark = pytest.mark.integration

PAGE = (ROOT / "docs/guide/cliptex-method.md").read_text()


def test_the_page_links_each_formula_to_its_function():
    links = set(re.findall(r"\.\./api\.md#([\w.]+)\)", PAGE))
    documented = set(re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.M))
    assert links <= documented and all(map(resolve_name, links))
    formulas = {name for name in vars(losses) if re.search("_(loss|nll)$", name)} - {"angmf_loss"}
    assert {f"{losses.__name__}.{name}" for name in formulas} <= links


def test_a_lambda_follows_its_schedule(pairs, tmp_path):
    recipe = CLIPTEX.changed({"schedules": "seg:rise,depth:fall"})
    total, terms = weighted_losses(recipe, {"clip": 2.0, "seg": 3.0, "depth": 4.0}, 0.25)
    assert terms == {"clip": 2.0, "seg": 3.0 * 0.1 * 0.25, "depth": 4.0 * 0.75}
    assert total == sum(terms.values())
    recorder = toy.Recorder()
    result = run(recipe, pairs, tmp_path / "w.safetensors", log=recorder, log_every=1)
    assert recorder.curve("train/lambda_depth")[1:] == pytest.approx([1 - n / 6 for n in range(6)])
    cached = toy.Recorder()
    out = tmp_path / "cached.safetensors"
    run(replace(recipe, accumulate=2), pairs, out, log=cached, log_every=1)
    assert cached.curve("train/loss") == pytest.approx(recorder.curve("train/loss"), rel=1e-3)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, pairs, tmp_path / "cut.safetensors", progress=toy.Recorder(die_at=3))
    assert run(recipe, pairs, tmp_path / "cut.safetensors").sha256 == result.sha256


def test_heads_read_the_layers_of_the_recipe(pairs, tmp_path, monkeypatch):
    layers = []
    original = CLIPWithHeads.__init__

    def record(self, clip, read, heads):
        layers.append((read, len(heads.norms)))
        original(self, clip, read, heads)

    monkeypatch.setattr(CLIPWithHeads, "__init__", record)
    recipe = replace(CLIPTEX, epochs=0.4, layers=(2,))
    result = run(recipe, pairs, tmp_path / "w.safetensors")
    assert layers == [((1,), 1)]
    trained = backbones.create("cliptex", weights=result.path, any_architecture=True)
    assert trained.data.layers == (0, 1), "a probe reads its own"
    with pytest.raises(UserError, match="2 blocks"):
        run(replace(recipe, layers=(3,)), pairs, tmp_path / "other.safetensors")


class Brightness(Task):
    """Learns soft labels that it computes of each image: three shares of brightness."""

    name = "brightness"

    def output_channels(self, classes):
        return 3

    def make_target(self, images, size):
        assert not torch.is_grad_enabled()
        return torch.nn.functional.interpolate(images, (size, size)).softmax(1)

    def loss(self, prediction, target):
        return -(target * prediction.log_softmax(1)).sum(), self.count(target)

    def count(self, target):
        return torch.tensor(float(target[:, 0].numel()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_task_learns_without_labels(pairs, tmp_path, accumulate):
    TASKS.register("brightness", Brightness())
    try:
        recorder = toy.Recorder()
        recipe = replace(CLIPTEX, experts=("brightness",), epochs=20.0, accumulate=accumulate)
        run(recipe, pairs, tmp_path / "w.safetensors", labels=None, log=recorder, log_every=10)
        first, *_, last = recorder.curve("train/loss_brightness")
        assert last < first - 0.02
        with pytest.raises(UserError, match="learns without labels"):
            find_label_map("brightness")
        with pytest.raises(UserError, match="learns seg but has no labels"):
            run(replace(recipe, experts=("seg", "brightness")), pairs, tmp_path / "x", labels=None)
        both = replace(recipe, experts=("seg", "brightness"), epochs=0.4)
        assert run(both, pairs, tmp_path / "both.safetensors").metrics["train/loss_seg"] > 0
    finally:
        del TASKS["brightness"]
