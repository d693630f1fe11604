"""Weights on disk: saved weights come back, damaged ones are refused in one line."""

from __future__ import annotations

import copy
import functools
import pickle
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import save_file

import backbones
from backbones.backbone import state_sha256
from backbones.checkpoint import Checkpoint, load_checkpoint, save_backbone, save_checkpoint
from backbones.weights import checkpoints
from cliptex_common.errors import UserError
from tests.backbones.mini import CONFIG, DATA, mini_clip

TEXTS = [
    "a red sphere",
    "two boxes on a table in a room that is described at far too great a length for the context",
]


@pytest.fixture
def mini(tmp_path) -> Path:
    path = tmp_path / "mini.safetensors"
    save_checkpoint(
        Checkpoint(
            path,
            mini_clip().state_dict(),
            architecture="open_clip/mini-clip",
            model_config=CONFIG,
            data=DATA,
            licence="MIT",
            source="trained here",
            extra={"recipe": "clip", "lambda_clip": 1.0},
        )
    )
    return path


@functools.cache
def lite_bytes(kind: str) -> bytes:
    """A small checkpoint of each kind, as bytes."""
    state = {
        "weight": torch.arange(60.0).reshape(3, 20),
        "bias": torch.ones(3, dtype=torch.float16),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        if kind == "ours":
            save_checkpoint(Checkpoint(path, state, "timm/x", {}, DATA))
        elif kind == "safetensors":
            save_file(state, path)
        else:
            torch.save(state, path)
        return path.read_bytes()


@pytest.mark.parametrize("name", ["cliptex", "clip-ft"])
def test_a_custom_clip_comes_back_whole(mini, name):
    original = mini_clip()
    backbone = backbones.create(name, weights=mini)
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(backbone.encode_image(images), original.encode_image(images))
        tokens = backbone.tokenizer(TEXTS)
        assert tokens.shape == (2, 16)
        assert torch.equal(backbone.encode_text(TEXTS), original.encode_text(tokens))
    assert backbone.data == DATA
    assert backbone.architecture == "open_clip/mini-clip"
    assert backbone.weights.sha256 == state_sha256(original.state_dict())
    assert (backbone.weights.licence, backbone.weights.source) == ("MIT", str(mini))
    assert load_checkpoint(mini).extra == {"recipe": "clip", "lambda_clip": 1.0}
    assert load_checkpoint(mini).source == "trained here"


def test_quick_gelu_of_another_name_is_refused(tmp_path, monkeypatch):
    """The trap: a tuned ``-quickgelu`` model fits the plain architecture, and silently computes
    otherwise."""
    import open_clip.factory as factory

    plain = {**CONFIG, "quick_gelu": False}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Mini", plain)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Mini-quickgelu", {**CONFIG})
    path = tmp_path / "tuned.safetensors"
    save_backbone(path, backbones.create("open_clip/Mini-quickgelu"))
    with pytest.raises(
        UserError,
        match=r"holds open_clip/Mini-quickgelu, not open_clip/Mini .quick_gelu is True, not None",
    ):
        backbones.create("open_clip/Mini", weights=path)
    assert backbones.create("open_clip/Mini-quickgelu", weights=path).model_config["quick_gelu"]
    built = backbones.create("open_clip/Mini", weights=path, any_architecture=True)
    assert built.architecture == "open_clip/Mini-quickgelu"


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "visual.", "backbone."])
def test_plain_files_are_unwrapped(tmp_path, wrapper, prefix):
    backbone = backbones.create("random/timm/test_vit", seed=1)
    state = {prefix + name: tensor for name, tensor in backbone.model_state().items()}
    loaded = {wrapper: state, "epoch": 3, "optimizer": {"lr": 0.1}} if wrapper else state
    torch.save(loaded, tmp_path / "weights.pth")
    again = backbones.create("timm/test_vit", weights=tmp_path / "weights.pth")
    assert again.weights.sha256 == backbone.weights.sha256
    assert again.weights.licence == "unknown"


def test_another_head_is_no_other_architecture(tmp_path):
    model = timm.create_model("test_vit", num_classes=7)
    save_file(model.state_dict(), tmp_path / "tuned.safetensors")
    backbone = backbones.create("timm/test_vit", weights=tmp_path / "tuned.safetensors")
    assert backbone.model(torch.zeros(1, 3, 160, 160)).shape == (1, 7)
    headless = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")
    }
    save_file(headless, tmp_path / "headless.safetensors")
    backbone = backbones.create("timm/test_vit", weights=tmp_path / "headless.safetensors")
    assert backbone.model.num_classes == 0
    save_backbone(tmp_path / "again.safetensors", backbone)
    assert (
        backbones.create("timm/test_vit", weights=tmp_path / "again.safetensors").key()
        == backbone.key()
    )


@pytest.mark.parametrize("prefix", ["", "visual."])
def test_an_image_tower_alone_has_no_text(tmp_path, monkeypatch, prefix):
    import open_clip.factory as factory

    monkeypatch.setitem(factory._MODEL_CONFIGS, "Mini", CONFIG)
    original = mini_clip()
    save_file(
        {prefix + n: t for n, t in original.visual.state_dict().items()},
        tmp_path / "tower.safetensors",
    )
    first, second = (
        backbones.create("open_clip/Mini", weights=tmp_path / "tower.safetensors", seed=s)
        for s in (0, 1)
    )
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(first.encode_image(images), original.encode_image(images))
    assert first.weights.sha256 == second.weights.sha256
    with pytest.raises(UserError, match="no text tower"):
        first.encode_text(["a dog"])


def test_wrong_architectures_are_refused_by_name(mini, tmp_path):
    resnet = tmp_path / "resnet.pth"
    torch.save(backbones.create("random/timm/resnet18").model_state(), resnet)
    with pytest.raises(
        UserError, match=r"resnet.pth does not fit timm/resnet34: no layer1.2.conv1.weight"
    ) as raised:
        backbones.create("timm/resnet34", weights=resnet)
    assert "\n" not in str(raised.value)
    assert "more" in str(raised.value)
    with pytest.raises(
        UserError,
        match=r"holds open_clip/mini-clip, not open_clip/ViT-B-16 .*embed_dim is 32, not 512",
    ):
        backbones.create("clip", weights=mini)
    with pytest.raises(UserError, match="does not say its architecture"):
        backbones.create("cliptex", weights=resnet)
    save_checkpoint(Checkpoint(tmp_path / "alien.st", {"w": torch.ones(1)}, "alien/net", {}, DATA))
    with pytest.raises(UserError, match="no known family"):
        backbones.create("cliptex", weights=tmp_path / "alien.st", any_architecture=True)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path(tempfile.gettempdir()) / "cliptex-evil",))


def test_pickles_are_never_run(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"w": torch.ones(1)}, "evil": Evil()}, path)
    with pytest.raises(UserError, match=r"evil.pth would have to be unpickled.*safetensors"):
        backbones.create("timm/resnet18", weights=path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"evil.pth"):
        backbones.create("timm/resnet18", weights=path)
    assert not (Path(tempfile.gettempdir()) / "cliptex-evil").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no weights file"),
        (b"PK\x03\x04", r"w\.pth"),
        ({"epoch": 3}, "holds no tensors"),
        ([torch.ones(2)], "holds no tensors"),
        ({0: torch.ones(2)}, "holds no tensors"),
        ({"a": torch.ones(2).to_sparse()}, "has 'a' as torch.float32, torch.sparse_coo"),
        ({"a": torch.ones(2, device="meta")}, "on meta; save dense numbers"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, "has 'a' as torch.float8"),
        ({"a": torch.ones(2).to(torch.complex64)}, "has 'a' as torch.complex64"),
    ],
)
def test_files_without_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_checkpoint(path)


def test_weights_of_a_newer_format_are_refused(tmp_path):
    save_file({"weight": torch.ones(1)}, tmp_path / "w", {"format_version": "2"})
    with pytest.raises(UserError, match="newer format"):
        load_checkpoint(tmp_path / "w")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("save", [save_file, torch.save])
def test_weights_that_are_not_finite_are_refused(tmp_path, value, save):
    state = copy.deepcopy(backbones.create("random/timm/test_vit").model_state())
    state["norm.bias"][3] = value
    save(state, tmp_path / "broken")
    with pytest.raises(UserError, match=r"NaN or infinite values in 'norm\.bias'"):
        backbones.create("timm/test_vit", weights=tmp_path / "broken")


def test_quantised_weights_are_refused(tmp_path):
    state = backbones.create("random/timm/test_vit").model_state()
    state["norm.bias"] = state["norm.bias"].to(torch.int8)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"norm\.bias is torch\.int8, not torch\.float32"):
        backbones.create("timm/test_vit", weights=tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["ours", "safetensors", "torch"])
@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_files_are_refused_in_one_line(kind, tmp_path, share):
    content = lite_bytes(kind)
    path = tmp_path / "cut"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError) as raised:
        load_checkpoint(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_never_changes_weights_silently(tmp_path, position, bit):
    damaged = bytearray(lite_bytes("ours"))
    damaged[int(len(damaged) * position)] ^= 1 << bit
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(damaged)
    good = tmp_path / "good.safetensors"
    good.write_bytes(lite_bytes("ours"))
    try:
        state = load_checkpoint(path).state
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert state_sha256(state) == state_sha256(load_checkpoint(good).state)


def test_every_shape_comes_back_also_of_tied_tensors(tmp_path, dtype=torch.bfloat16):
    state = {str(shape): torch.ones(shape).to(dtype) for shape in ((), (0,), (3,), (2, 0, 4))}
    tied = torch.arange(12.0).reshape(3, 4)
    state |= {"tied": tied, "again": tied, "strided": tied.T}
    path = tmp_path / "any.safetensors"
    save_checkpoint(Checkpoint(path, state, "timm/x", {"a": [1, 2]}, DATA))
    read = load_checkpoint(path)
    assert read.state.keys() == state.keys()
    for name, tensor in state.items():
        assert read.state[name].dtype == tensor.dtype and torch.equal(read.state[name], tensor)
    assert (read.data, read.model_config) == (DATA, {"a": [1, 2]})


def test_checkpoints_of_a_training_by_step(tmp_path):
    names = ("steps-2000.pt", "epoch=3-step=1000.ckpt", "checkpoint-500/model.safetensors")
    others = (
        "last.pt",
        "epoch_latest.pt",
        "checkpoint-500/optimizer.pt",
        "runs-7/log.txt",
        "a1.txt",
    )
    for name in (*names, *others):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    steps = [500, 1000, 2000]
    assert list(checkpoints(tmp_path).items()) == [
        (step, tmp_path / name) for step, name in zip(steps, reversed(names), strict=True)
    ]
