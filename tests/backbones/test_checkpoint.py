"""Weights on disk: saved weights come back, damaged ones are refused in one line."""

from __future__ import annotations

import functools
import pickle
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import open_clip.factory as factory
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import save, save_file

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
    path, recipe = tmp_path / "mini.safetensors", {"recipe": "clip", "lambda_clip": 1.0}
    architecture = ("open_clip/mini-clip", CONFIG, DATA, "MIT", "trained here", recipe)
    save_checkpoint(Checkpoint(path, mini_clip().state_dict(), *architecture))
    return path


@pytest.fixture(autouse=True)
def small_architectures(monkeypatch):
    plain = {**CONFIG, "quick_gelu": False}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Mini", plain)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Mini-quickgelu", CONFIG)


@functools.cache
def lite_bytes(kind: str) -> bytes:
    """A small checkpoint of each kind, as bytes."""
    state = {"weight": torch.arange(60.0).reshape(3, 20), "bias": torch.ones(3, dtype=torch.half)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        if kind == "ours":
            save_checkpoint(Checkpoint(path, state, "timm/x", {}, DATA))
        else:
            {"safetensors": save_file, "torch": torch.save}[kind](state, path)
        return path.read_bytes()


@pytest.mark.parametrize("name", ["cliptex", "clip-ft"])
def test_a_custom_clip_comes_back_whole(mini, name):
    original, backbone = mini_clip(), backbones.create(name, weights=mini)
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(backbone.encode_image(images), original.encode_image(images))
        tokens = backbone.tokenizer(TEXTS)
        assert tokens.shape == (2, 16)
        assert torch.equal(backbone.encode_text(TEXTS), original.encode_text(tokens))
    assert (backbone.data, backbone.architecture) == (DATA, "open_clip/mini-clip")
    assert backbone.weights.sha256 == state_sha256(original.state_dict())
    assert (backbone.weights.licence, backbone.weights.source) == ("MIT", str(mini))
    stored = load_checkpoint(mini)
    assert stored.extra == {"recipe": "clip", "lambda_clip": 1.0}
    assert stored.source == "trained here"


def test_quick_gelu_of_another_name_is_refused(tmp_path):
    """The trap: a tuned ``-quickgelu`` model fits the plain architecture, and silently computes
    otherwise."""
    path = tmp_path / "tuned.safetensors"
    save_backbone(path, backbones.create("open_clip/Mini-quickgelu"))
    message = "holds open_clip/Mini-quickgelu, not open_clip/Mini .quick_gelu is True, not None"
    with pytest.raises(UserError, match=message):
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
    state = timm.create_model("test_vit", num_classes=7).state_dict()
    headless = {name: state[name] for name in state if not name.startswith("head.")}
    path = tmp_path / "tuned.safetensors"
    for weights, classes in ((state, 7), (headless, 0)):
        save_file(weights, path)
        backbone = backbones.create("timm/test_vit", weights=path)
        assert backbone.model.num_classes == classes
    save_backbone(path, backbone)
    assert backbones.create("timm/test_vit", weights=path).key() == backbone.key()


@pytest.mark.parametrize("prefix", ["", "visual."])
def test_an_image_tower_alone_has_no_text(tmp_path, prefix):
    original, path = mini_clip(), tmp_path / "tower.safetensors"
    save_file({prefix + n: t for n, t in original.visual.state_dict().items()}, path)
    name = "open_clip/Mini-quickgelu"
    first, second = (backbones.create(name, weights=path, seed=seed) for seed in (0, 1))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(first.encode_image(images), original.encode_image(images))
    assert first.weights.sha256 == second.weights.sha256
    with pytest.raises(UserError, match="no text tower"):
        first.encode_text(["a dog"])


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        (
            "timm/resnet34",
            "resnet.pth",
            r"does not fit timm/resnet34: no layer1.2.conv1.weight.*more",
        ),
        (
            "clip",
            "mini.safetensors",
            "holds open_clip/mini-clip, not open_clip/ViT-B-16 .*is 32, not 512",
        ),
        ("cliptex", "resnet.pth", "does not say its architecture"),
        ("cliptex", "alien.safetensors", "no known family"),
    ],
)
def test_wrong_architectures_are_refused_by_name(mini, tmp_path, name, file, message):
    path = mini.with_name(file)
    if file == "resnet.pth":
        torch.save(backbones.create("random/timm/resnet18").model_state(), path)
    elif file == "alien.safetensors":
        save_checkpoint(Checkpoint(path, {"w": torch.ones(1)}, "alien/net", {}, DATA))
    with pytest.raises(UserError, match=message) as raised:
        backbones.create(name, weights=path, any_architecture=file == "alien.safetensors")
    assert "\n" not in str(raised.value)


class Evil:
    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


def test_pickles_are_never_run(tmp_path):
    path, evil = tmp_path / "evil.pth", Evil(tmp_path / "proof")
    torch.save({"state_dict": {"w": torch.ones(1)}, "evil": evil}, path)
    with pytest.raises(UserError, match=r"evil.pth would have to be unpickled.*safetensors"):
        backbones.create("timm/resnet18", weights=path)
    path.write_bytes(pickle.dumps(evil))
    with pytest.raises(UserError, match=r"evil.pth"):
        backbones.create("timm/resnet18", weights=path)
    assert not evil.proof.exists()


def of_vit(value) -> dict[str, torch.Tensor]:
    """The weights of timm's test_vit, with another bias."""
    state = backbones.create("random/timm/test_vit").model_state()
    return {**state, "norm.bias": torch.full_like(state["norm.bias"], value)}


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
        (of_vit(float("nan")), r"NaN or infinite values in 'norm\.bias'"),
        (of_vit(-float("inf")), r"NaN or infinite values in 'norm\.bias'"),
        (save({"w": torch.ones(1)}, {"format_version": "2"}), "newer format"),
        (save(of_vit(float("inf"))), r"NaN or infinite values in 'norm\.bias'"),
        (
            of_vit(1) | {"norm.bias": torch.ones(64, dtype=torch.int8)},
            r"norm\.bias is torch\.int8, not torch\.float32",
        ),
    ],
)
def test_files_without_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        backbones.create("timm/test_vit", weights=path)


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
    path, content = tmp_path / "w.safetensors", lite_bytes("ours")
    path.write_bytes(content)
    intact, damaged = load_checkpoint(path).state, bytearray(content)
    damaged[int(len(damaged) * position)] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        state = load_checkpoint(path).state
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert state_sha256(state) == state_sha256(intact)


def test_every_shape_comes_back_also_of_tied_tensors(tmp_path):
    shapes = ((), (0,), (3,), (2, 0, 4))
    state = {str(shape): torch.ones(shape, dtype=torch.bfloat16) for shape in shapes}
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
    steps = {
        500: "checkpoint-500/model.safetensors",
        1000: "epoch=3-step=1000.ckpt",
        2000: "steps-2000.pt",
    }
    others = ("last.pt", "epoch_latest.pt", "checkpoint-500/optimizer.pt", "runs-7/log.txt", "a1")
    for name in (*reversed(steps.values()), *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = [(step, tmp_path / name) for step, name in steps.items()]
    assert list(checkpoints(tmp_path).items()) == expected
