"""Backbones through ``torch.compile``: only when asked for, the same up to rounding, and never
needed."""

from __future__ import annotations

import logging

import pytest
import torch

from backbones import registry
from probes.features import compiling
from probes.features.compiling import SETTING, compiled
from probes.features.cost import EncodeCost
from tests.probes import tiny_mmlab  # noqa: F401  registers


def test_nothing_is_compiled_unless_asked_for(monkeypatch):
    monkeypatch.delenv(SETTING, raising=False)
    assert compiled(torch.sin, "sin") is torch.sin
    monkeypatch.setenv(SETTING, "0")
    assert not compiling.wanted()


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setenv(SETTING, "1")

    def no_compiler(function):
        def call(images):
            raise RuntimeError("no C++ compiler was found\nand a page more")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    run, images = compiled(torch.sin, "sin"), torch.rand(2, 3)
    with caplog.at_level(logging.WARNING, "cliptex.encode"):
        assert torch.equal(run(images), images.sin()) and torch.equal(run(images), images.sin())
    assert [record.message for record in caplog.records] == [
        "sin runs uncompiled: RuntimeError: no C++ compiler was found"
    ]


def test_its_own_error_is_raised(monkeypatch):
    monkeypatch.setenv(SETTING, "1")
    monkeypatch.setattr(torch, "compile", lambda function: function)

    def broken(images):
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        compiled(broken, "broken")(torch.zeros(1))


def test_a_compiled_backbone_gives_the_same_and_is_counted_all_the_same(monkeypatch):
    monkeypatch.setenv(SETTING, "1")
    original = torch.compile
    # traced for real; what inductor would write in C++ runs as torch's own operations here, in
    # seconds
    monkeypatch.setattr(torch, "compile", lambda function: original(function, backend="aot_eager"))
    backbone, images = registry.create("tiny-cnn", seed=3), torch.randn(2, 3, 64, 64)
    quick, cost = compiled(backbone.encode_image, "tiny-cnn"), EncodeCost()
    with torch.inference_mode():
        plain = backbone.encode_image(images)
        for _ in range(3):
            found = cost.run(backbone.encode_image, images, quick)
            torch.testing.assert_close(found, plain)
    assert cost.images == 6 and cost.flops > 0
