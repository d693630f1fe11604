"""The table of encoders in the docs is what happens here."""

from __future__ import annotations

import json

import pytest
import torch

import backbones
from backbones.adapters.timm import build
from backbones.registry import Request
from tests.backbones.hub_repo import HUB_REPO
from tests.backbones.thin import HF, MODELS, configs, save_tokenizer
from tests.docs.shown_files import ROOT

PAGE = ROOT / "docs" / "guide" / "encoders.md"
START, END = "<!-- encoders: start -->", "<!-- encoders: end -->"
REFUSED = configs("refused")
HEADER = ("encoder", "adapter", "sizes", "feature maps", "embedding", "text")


def describe(backbone) -> tuple[str, ...]:
    """(sizes, feature maps, embedding, text) of a backbone, by running it."""
    size = backbone.fixed_size or (2 * backbone.divisor, 3 * backbone.divisor)
    images = torch.randn(1, 3, *size)
    with torch.inference_mode():
        maps, embedding = backbone(images), backbone.encode_image(images)
        token, patches = backbone.encode_tokens(images, 1)[0]
    assert embedding.shape == (1, backbone.embed_dim) and embedding.isfinite().all()
    for feature_map, stride in zip(maps, backbone.strides, strict=True):
        assert feature_map.shape[-2:] == (size[0] // stride, size[1] // stride)
    if backbone.fixed_size:
        with pytest.raises(backbones.UserError, match=r"takes images of .* only"):
            backbone(images[..., : size[0] - backbone.divisor, :])
    if backbone.has_text:
        texts = backbone.encode_text(["a dog", "a cat"])
        assert texts.shape == (2, backbone.embed_dim) and not torch.equal(texts[0], texts[1])
        kind = "as compared with texts"
    else:
        kinds = {"mean of the last map": patches.mean(dim=1), "class token": token}
        equal = [
            kind
            for kind, value in kinds.items()
            if value.shape == embedding.shape and torch.allclose(value, embedding, atol=1e-5)
        ]
        kind = equal[0] if equal else "the model's own"
    return (
        "its own only" if backbone.fixed_size else "any",
        "one stride" if len(set(backbone.strides)) == 1 else "a pyramid",
        kind,
        "yes" if backbone.has_text else "–",
    )


def rows(folder) -> list[tuple[str, ...]]:
    """A row of the table for each encoder."""
    rows = [HEADER, ("---",) * len(HEADER)]
    for name, config in sorted({**HF, **configs("transformers")}.items()):
        repo = folder / name
        repo.mkdir()
        (repo / "config.json").write_text(json.dumps({"model_type": name, **config}))
        save_tokenizer(repo)
        backbone = backbones.create(f"random/hf/{repo}")
        rows.append((f"`{name}`", "`hf/`", *describe(backbone)))
    for name, arguments in sorted(MODELS["timm"].items()):
        settings = {"model_args": arguments}
        backbone = build(Request(f"timm/{name}", settings, random=True)).freeze()
        rows.append((f"`{name}`", "`timm/`", *describe(backbone)))
    for entry, models in sorted(MODELS["torch_hub"].items()):
        backbone = backbones.create(f"random/hub/{HUB_REPO}:{entry}")
        rows.append((f"the interface of {models}", "`hub/`", *describe(backbone)))
    return rows


def test_the_table_in_the_docs_is_what_happens_here(tmp_path):
    torch.manual_seed(0)
    table = [f"| {' | '.join(row)} |" for row in rows(tmp_path)]
    page = PAGE.read_text(encoding="utf-8")
    assert table == page.partition(START)[2].partition(END)[0].strip().splitlines()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_refused_is_refused_in_one_line(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **REFUSED[name]}))
    with pytest.raises(backbones.UserError, match="write a module") as caught:
        backbones.create(f"random/hf/{tmp_path}")
    assert "\n" not in str(caught.value)
    assert f"`{name}`" in PAGE.read_text(encoding="utf-8").partition(END)[2]
