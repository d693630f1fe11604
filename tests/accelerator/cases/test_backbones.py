"""Every backbone gives on an accelerator what it gives on a CPU."""

from __future__ import annotations

import pytest
import torch

import backbones
from backbones.backbone import Backbone
from tests.backbones import thin

covered: set[type[Backbone]] = set()


@pytest.fixture(scope="module", autouse=True)
def repositories(tmp_path_factory):
    with thin.repositories(tmp_path_factory.mktemp("hf")):
        yield


def outputs(backbone: Backbone, images: torch.Tensor) -> list[torch.Tensor]:
    """Everything that probes read of a backbone."""
    with torch.inference_mode():
        values = [*backbone(images), backbone.encode_image(images)]
        values += [backbone.encode_features(images), *backbone.encode_tokens(images, 1)[0]]
        if backbone.has_text and "hf_tokenizer_name" not in backbone.model_config.get(
            "text_cfg", ()
        ):
            values.append(backbone.encode_text(["a dog", "a cat"]))
        if backbone.has_dense_text:
            values.append(backbone.encode_dense(images))
    return values


@pytest.mark.parametrize("name", thin.PARAMS)
def test_outputs_are_those_of_the_cpu(name, device):
    with thin.thin(name):
        backbone = backbones.create(name, seed=0)
    images = torch.randn(2, 3, 2 * backbone.divisor, 3 * backbone.divisor)
    expected = outputs(backbone, images)
    backbone.to(device)
    actual = outputs(backbone, images.to(device))
    for value, reference in zip(actual, expected, strict=True):
        assert value.device.type == device.type
        torch.testing.assert_close(value.cpu(), reference, atol=1e-3, rtol=1e-3)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        assert torch.isfinite(backbone.encode_image(images.to(device))).all()
    covered.add(type(backbone))


def test_every_adapter_is_covered():
    """The cases that always run include every class of this package that probes may get."""
    own = {each for each in subclasses(Backbone) if each.__module__.startswith("backbones.")}
    assert {each for each in own if not each.__abstractmethods__} <= covered


def subclasses(parent: type) -> set[type]:
    return {parent}.union(*map(subclasses, parent.__subclasses__()))
