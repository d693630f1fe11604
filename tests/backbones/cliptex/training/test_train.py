"""The training loop on a toy world: it learns, refuses what it cannot do, and exports what it
trained."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import backbones
from backbones.adapters.open_clip import build_model
from backbones.cliptex.data.dataset import TrainDataset
from backbones.cliptex.data.pairs import open_pairs
from backbones.cliptex.labels.joined import JoinedLabels
from backbones.cliptex.labels.store import LabelStore, LabelWriter, encode
from backbones.cliptex.tasks.depth import depth_loss
from backbones.cliptex.training import models
from backbones.cliptex.training.models import load_pretrained_clip
from backbones.cliptex.training.recipes import RECIPES
from backbones.cliptex.training.retrieval import recall
from backbones.cliptex.training.train import TrainContext, find_trained, train
from backbones.named import efficientnet_lite0_state
from common.errors import UserError
from tests.backbones.cliptex import toy

CPU = torch.device("cpu")
TINY = {"model": "tiny", "batch_size": 16, "epochs": 2.0, "lr": 1e-3}
CLIPTEX = replace(RECIPES["cliptex"], **TINY)


def run(recipe, pairs, out, *, init="random", labels=..., **context):
    labels = toy.ToyLabels() if labels is ... else labels
    context = TrainContext(**{"workers": 0, **context})
    return train(recipe, init=init, pairs=pairs, out=out, labels=labels, context=context)


def test_export_gives_the_features_that_were_trained(pairs, tmp_path, monkeypatch):
    trained = {}
    original = models.CLIPWithHeads.__init__
    monkeypatch.setattr(
        models.CLIPWithHeads,
        "__init__",
        lambda self, *a: (trained.update(towers=self), original(self, *a))[1],
    )
    recorder = toy.Recorder()
    result = run(
        replace(CLIPTEX, val_pairs=10),
        pairs,
        tmp_path / "w.safetensors",
        log=recorder,
        progress=recorder,
    )
    backbone = backbones.create("cliptex", weights=result.path, any_architecture=True)
    images = torch.randn(3, 3, 32, 32)
    towers = trained["towers"].eval()
    with torch.no_grad():
        seen = towers.clip.visual.forward_intermediates(
            images, indices=towers.layers, normalize_intermediates=True
        )
        assert torch.allclose(backbone.encode_image(images), seen["image_features"], atol=1e-5)
        for ours, theirs in zip(backbone(images), seen["image_intermediates"], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
        text = towers.clip.encode_text(backbone.tokenizer(["a red disc"]))
        assert torch.allclose(backbone.encode_text(["a red disc"]), text, atol=1e-5)
    assert backbone.weights.sha256 == result.sha256
    assert not [name for name in load_file(result.path) if "head" in name]

    # 38 of 48 pairs, 16 a step, 2 epochs: 5 steps
    assert (
        result.cost["steps"] == 5
        and result.cost["flops_per_step"] > 1e6
        and result.cost["train_seconds"] > 0
    )
    assert recorder.bars[-1] == ("train cliptex", 5) and recorder.steps == 5
    logged = {name for _, metrics in recorder.metrics for name in metrics}
    assert {
        "train/loss",
        "train/loss_clip",
        "train/loss_seg",
        "train/loss_depth",
        "train/loss_normal",
        "train/lr",
    } <= logged
    assert {
        "train/grad_norm",
        "train/grad_norm_seg",
        "train/grad_norm_clip",
        "train/images_per_second",
    } <= logged
    assert {"val/i2t_R@1", "val/t2i_R@10", "train/lambda_seg", "train/logit_scale"} <= logged
    assert all(
        math.isfinite(value) for _, metrics in recorder.metrics for value in metrics.values()
    )
    extra = backbones.load_checkpoint(result.path).extra
    assert (
        extra["recipe"]["lambda_seg"] == 0.1
        and extra["key"] == result.key
        and extra["pairs"]["count"] == 48
    )

    inputs = {"init": "random", "pairs": pairs, "out": result.path, "labels": toy.ToyLabels()}
    assert find_trained(replace(CLIPTEX, val_pairs=10), **inputs) == replace(result, trained=False)
    assert find_trained(replace(CLIPTEX, val_pairs=10, seed=1), **inputs) is None
    labels = toy.ToyLabels()
    again = run(replace(CLIPTEX, val_pairs=10, name="other"), pairs, result.path, labels=labels)
    assert (
        not again.trained
        and again.sha256 == result.sha256
        and again.metrics == result.metrics
        and labels.reads == 0
    )
    result.path.write_bytes(result.path.read_bytes()[:-1000])
    assert run(replace(CLIPTEX, val_pairs=10), pairs, result.path).sha256 == result.sha256
    changed = run(CLIPTEX.changed({"val_pairs": 10, "lambda_seg": 1.0}), pairs, result.path)
    assert changed.trained and changed.sha256 != result.sha256


def test_it_learns(pairs, tmp_path):
    recorder = toy.Recorder()
    recipe = CLIPTEX.changed({"epochs": 40.0, "lr": 3e-3, "head_lr": 1.0, "lambda_seg": 1.0})
    run(recipe, pairs, tmp_path / "w.safetensors", log=recorder, log_every=10)
    curves = [metrics for _, metrics in recorder.metrics if "train/loss_clip" in metrics]
    first, last = curves[0], curves[-1]
    assert first["train/loss_clip"] == pytest.approx(math.log(16), abs=0.5)
    assert last["train/loss_clip"] < first["train/loss_clip"] - 0.7
    for task, share in (("seg", 0.6), ("depth", 0.7), ("normal", 0.7)):
        assert last[f"train/loss_{task}"] < share * first[f"train/loss_{task}"], task


def test_clip_ft_reads_no_labels_and_sees_the_same_data(pairs, tmp_path):
    labels = toy.ToyLabels()
    ft = replace(RECIPES["clip-ft"], **TINY)
    result = run(ft, pairs, tmp_path / "ft.safetensors", labels=labels)
    assert (
        labels.reads == 0
        and result.key == run(ft, pairs, tmp_path / "ft.safetensors", labels=None).key
    )
    start = load_pretrained_clip("random", "tiny")
    both = [
        TrainDataset(
            pairs,
            toy.ToyLabels(),
            recipe,
            tokenizer=start.tokenizer,
            data=start.data,
            label_size=16,
        )
        for recipe in (ft, CLIPTEX)
    ]
    assert len(both[0]) == len(both[1]) == 6
    for step in range(6):
        assert torch.equal(both[0][step].images, both[1][step].images)
        assert torch.equal(both[0][step].tokens, both[1][step].tokens)


def test_micro_batches_move_statistics_once(tmp_path, pairs):
    """Gradient caching passes each micro-batch twice: as many updates of a batch norm as
    micro-batches, no more."""
    init = other_tower(tmp_path, "timm")
    result = run(
        replace(CLIPTEX, accumulate=2, epochs=1.0), pairs, tmp_path / "w.safetensors", init=init
    )
    counts = [
        value.item()
        for name, value in load_file(result.path).items()
        if name.endswith("num_batches_tracked")
    ]
    assert counts and set(counts) == {2 * result.cost["steps"]}


def test_what_is_validated_is_what_is_exported(pairs, tmp_path):
    """The moving average, at every epoch."""
    recorder = toy.Recorder()
    recipe = replace(CLIPTEX, ema=0.9, val_pairs=12, epochs=1.0)
    result = run(recipe, pairs, tmp_path / "w.safetensors", log=recorder)
    backbone = backbones.create("cliptex", weights=result.path, any_architecture=True)
    start = load_pretrained_clip("random", "tiny")
    batches = TrainDataset(
        pairs, None, recipe, tokenizer=start.tokenizer, data=start.data, label_size=0
    )
    (batch,) = (batches.to_device(first, CPU) for first in batches.validation())
    towers = models.CLIPWithHeads(backbone.model, (), None).eval()
    with torch.no_grad():
        out = towers(batch.images, batch.tokens)
    expected = {f"val/{name}": value for name, value in recall(out["image"], out["text"]).items()}
    assert expected == {
        name: value for name, value in result.metrics.items() if name.startswith("val/")
    }


def test_siglip_is_trained_with_its_own_loss(pairs, tmp_path):
    config = {**models.TINY_CLIP, "init_logit_bias": -10.0, "init_logit_scale": math.log(10)}
    init = saved_model(tmp_path, config, 32, (0, 1))
    recorder = toy.Recorder()
    recipe = replace(CLIPTEX, epochs=1.0, lr=1e-2, warmup=0.0)
    result = run(recipe, pairs, tmp_path / "w.safetensors", init=init, log=recorder, log_every=1)
    first = next(
        metrics["train/loss_clip"]
        for _, metrics in recorder.metrics
        if "train/loss_clip" in metrics
    )
    assert first == pytest.approx(
        10, rel=0.5
    )  # of a softmax over 16 it would be ln 16; the bias of -10 costs each match 10
    assert load_file(result.path)["logit_bias"].item() != -10
    pieces = run(replace(recipe, accumulate=2), pairs, tmp_path / "p.safetensors", init=init)
    first, second = load_file(result.path), load_file(pieces.path)
    assert torch.allclose(first["logit_bias"], second["logit_bias"], atol=1e-4)


def test_checkpointing_and_compiling_change_nothing(pairs, tmp_path):
    complete = run(replace(CLIPTEX, epochs=0.7), pairs, tmp_path / "a.safetensors")
    thrifty = run(
        replace(CLIPTEX, epochs=0.7, grad_checkpointing=True), pairs, tmp_path / "b.safetensors"
    )
    assert (
        thrifty.key
        == complete.key
        == run(replace(CLIPTEX, epochs=0.7, compile=True), pairs, complete.path).key
    )
    first, second = load_file(complete.path), load_file(thrifty.path)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_patches_that_are_dropped_and_heads_do_not_go_together(pairs, tmp_path):
    vision = {**models.TINY_CLIP["vision_cfg"], "patch_dropout": 0.5}
    init = saved_model(tmp_path, {**models.TINY_CLIP, "vision_cfg": vision}, 32, (0, 1))
    with pytest.raises(UserError, match="need every patch"):
        run(CLIPTEX, pairs, tmp_path / "w.safetensors", init=init)
    ft = replace(RECIPES["clip-ft"], **TINY, accumulate=2)
    assert run(replace(ft, epochs=0.4), pairs, tmp_path / "w.safetensors", init=init).trained


def test_unknown_normals_may_be_nan(pairs, tmp_path):
    class Unknown(toy.ToyLabels):
        def get(self, key, tasks=None):
            return {**super().get(key), "normal": np.full((3, 32, 32), np.nan, np.float32)}

    result = run(replace(CLIPTEX, epochs=0.3), pairs, tmp_path / "w.safetensors", labels=Unknown())
    assert result.metrics["train/loss_normal"] == 0


def test_a_tower_that_starts_from_imagenet(pairs, tmp_path):
    start = load_pretrained_clip("imagenet", "mini", seed=3)
    stored, _ = efficientnet_lite0_state()
    trunk = start.model.visual.trunk.state_dict()
    assert all(torch.equal(trunk[name], stored[name]) for name in trunk) and len(trunk) > 200
    assert (
        start.data.mean == (0.5, 0.5, 0.5)
        and start.licence == "Apache-2.0"
        and "ImageNet" in start.source
    )
    different = load_pretrained_clip("random", "mini", seed=3)
    assert torch.equal(start.model.token_embedding.weight, different.model.token_embedding.weight)
    assert start.digest != different.digest
    recipe = replace(
        RECIPES["cliptex"], model="mini", batch_size=16, epochs=0.4, label_size=32, head_width=16
    )
    result = run(recipe, pairs, tmp_path / "w.safetensors", init="imagenet")
    backbone = backbones.create("cliptex", weights=result.path, any_architecture=True)
    assert backbone.strides == (4, 8, 16, 32) and backbone.weights.licence == "Apache-2.0"


def test_what_the_user_can_mend(pairs, tmp_path):
    out = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="give --labels"):
        run(CLIPTEX, pairs, out, labels=None)
    with pytest.raises(UserError, match="batch_size 64 is more than the 48"):
        run(replace(CLIPTEX, batch_size=64), pairs, out)
    with pytest.raises(UserError, match="no depth for pairs such as 00000/"):
        run(CLIPTEX, pairs, out, labels=toy.ToyLabels(tasks=("seg", "normal")))
    with pytest.raises(UserError, match="no model 'tinny'"):
        run(replace(CLIPTEX, model="tinny"), pairs, out)
    with pytest.raises(
        UserError, match="init imagenet is for timm image towers, and model 'tiny' has none"
    ):
        run(CLIPTEX, pairs, out, init="imagenet")
    with pytest.raises(UserError, match="no image and text tower"):
        run(CLIPTEX, pairs, out, init="random/timm/resnet18")


def test_a_subset_may_be_labelled_on_purpose(pairs, tmp_path):
    """What has no label counts for the contrast alone, and is said; that nothing has a label is a
    mistake."""
    keys = [pairs.key(index) for index in range(len(pairs))]
    few = toy.ToyLabels(missing=tuple(keys[:40]))
    result = run(replace(CLIPTEX, epochs=1.0), pairs, tmp_path / "w.safetensors", labels=few)
    assert result.notes == ["83.3% of the samples have no labels; only the contrast uses them"]
    assert math.isfinite(result.metrics["train/loss_seg"]) and result.metrics["train/loss_seg"] > 0
    with pytest.raises(UserError, match="the labels have no depth for pairs such as"):
        run(CLIPTEX, pairs, tmp_path / "x.safetensors", labels=toy.ToyLabels(missing=tuple(keys)))


def test_coarse_labels_are_reported_before_the_training(pairs, tmp_path):
    recipe = replace(CLIPTEX, epochs=0.3)
    events: list[str] = []

    class Progress(toy.Recorder):
        def start(self, description, total):
            events.append(description)

    coarse = toy.ToyLabels(size=12)
    context = {"progress": Progress(), "notify": events.append}
    result = run(recipe, pairs, tmp_path / "w.safetensors", labels=coarse, **context)
    note = "labels have 12 pixels and are compared at 16: label with label_side=32"
    assert result.notes == [note]
    assert events[0] == note and events[-1] == "train cliptex"
    assert run(recipe, pairs, tmp_path / "x.safetensors").notes == []


def test_automatic_precision_is_part_of_the_identity(pairs, tmp_path):
    """``auto`` is bf16 on CUDA: weights of a CPU are not found for a GPU."""
    assert CLIPTEX.with_precision("cpu") == replace(CLIPTEX, precision="fp32")
    assert CLIPTEX.with_precision(torch.device("cuda", 1)) == replace(CLIPTEX, precision="bf16")
    explicit = replace(CLIPTEX, precision="fp32", epochs=0.3)
    result = run(explicit, pairs, tmp_path / "w.safetensors")
    inputs = {"init": "random", "pairs": pairs, "out": result.path, "labels": toy.ToyLabels()}
    automatic = replace(CLIPTEX, epochs=0.3)
    assert find_trained(automatic, **inputs, device="cpu").key == result.key
    assert find_trained(automatic, **inputs, device="cuda") is None
    assert backbones.load_checkpoint(result.path).extra["recipe"]["precision"] == "fp32"


def test_corrupt_images_are_replaced_counted_and_named(tmp_path):
    members = {}
    for i in range(120):
        image, caption, _ = toy.scene(i)
        members[f"{i:09d}.png"] = b"corrupt" if i == 5 else toy.encode(image)
        members[f"{i:09d}.txt"] = caption.encode()
    pairs = open_pairs(toy.write_tar(tmp_path / "00000.tar", members))
    recipe = replace(CLIPTEX, epochs=1.0)
    for workers in (0, 2):
        result = run(recipe, pairs, tmp_path / f"{workers}.safetensors", workers=workers)
        assert len(result.notes) == 1 and "00000/000000005" in result.notes[0]


def test_fine_tuning_at_another_image_size(pairs, tmp_path):
    first = run(replace(CLIPTEX, epochs=0.5), pairs, tmp_path / "a.safetensors")
    recipe = replace(CLIPTEX, epochs=0.5, image_size=48, precision="bf16")
    second = run(recipe, pairs, tmp_path / "b.safetensors", init=str(first.path))
    backbone = backbones.create("cliptex", weights=second.path, any_architecture=True)
    assert backbone.data.size == (48, 48) and backbone(torch.zeros(1, 3, 48, 48))[0].shape[-2:] == (
        6,
        6,
    )
    assert all(value.dtype == torch.float32 for value in load_file(second.path).values())


def test_manual_labels_win_and_pseudo_labels_fill_in(pairs, tmp_path):
    class Manual(toy.ToyLabels):
        def get(self, key, tasks=None):
            return {"seg": np.full((32, 32), 2, np.uint8)}

        def tasks_of(self, key):
            return ("seg",) if key.endswith(("2", "4")) else ()

    joined = JoinedLabels([Manual(), toy.ToyLabels()])
    both, pseudo = joined.get("00000/000000002"), joined.get("00000/000000006")
    assert (both["seg"] == 2).all() and set(both) == {"seg", "depth", "normal"}
    assert np.array_equal(pseudo["seg"], toy.ToyLabels().get("00000/000000006")["seg"])
    assert joined.identity != toy.ToyLabels().identity
    assert run(
        replace(CLIPTEX, epochs=0.3), pairs, tmp_path / "w.safetensors", labels=joined
    ).trained
    different = toy.ToyLabels()
    different.classes = {"seg": ("x", "y", "z")}
    with pytest.raises(UserError, match="disagree"):
        JoinedLabels([different, toy.ToyLabels()])


VISION = {
    "resnet": {
        "image_size": 64,
        "layers": [1, 1, 1, 1],
        "width": 16,
        "head_width": 16,
        "patch_size": None,
    },
    "timm": {
        "image_size": 64,
        "timm_model_name": "test_resnet",
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "timm-vit": {
        "image_size": 32,
        "timm_model_name": "test_vit",
        "timm_pool": "",
        "timm_proj": "linear",
    },
}


LAYERS = {"resnet": (1, 2, 3, 4), "timm": (1, 2, 3, 4), "timm-vit": (2, 5)}


def other_tower(folder: Path, tower: str) -> str:
    """A file of random weights of a tiny CLIP with another image tower."""
    config = {**models.TINY_CLIP, "vision_cfg": VISION[tower]}
    return saved_model(folder, config, VISION[tower]["image_size"], LAYERS[tower])


def saved_model(folder: Path, config: dict, side: int, layers: tuple[int, ...]) -> str:
    """A file of random weights of an open_clip model config."""
    torch.manual_seed(0)
    data = backbones.DataConfig((side, side), (0.5,) * 3, (0.5,) * 3, layers=layers)
    path, state = folder / "init.safetensors", build_model(config).state_dict()
    backbones.save_checkpoint(backbones.Checkpoint(path, state, "open_clip/toy", config, data))
    return str(path)


@pytest.mark.parametrize("tower", VISION)
def test_other_image_towers_train_too(pairs, tmp_path, tower):
    """CLIP's ResNet and timm trunks: maps of several strides, batch norm, no patch size."""
    init = other_tower(tmp_path, tower)
    result = run(replace(CLIPTEX, epochs=0.7), pairs, tmp_path / "w.safetensors", init=init)
    backbone = backbones.create("cliptex", weights=result.path, any_architecture=True)
    side = VISION[tower]["image_size"]
    assert len(backbone(torch.zeros(1, 3, side, side))) == len(LAYERS[tower])
    assert result.sha256 != backbones.load_checkpoint(init).sha256


def test_real_pairs_in_both_layouts(real_data, tmp_path):
    """A few steps on photographs of many sizes, decoded by workers; labels of another
    resolution."""

    class Grey(toy.ToyLabels):
        def get(self, key, tasks=None):
            return toy.scene(len(key), 24)[2]

        def tasks_of(self, key):
            return self.tasks

    recipe = replace(CLIPTEX, epochs=0.1)
    for source in ("shards", "train.csv"):
        result = run(
            recipe,
            open_pairs(real_data / "cc_pairs" / source),
            tmp_path / source,
            labels=Grey(),
            workers=2,
        )
        assert result.trained and not result.notes
        backbones.create("cliptex", weights=result.path, any_architecture=True)


def test_with_a_real_label_store(pairs, tmp_path):
    """Labels as the label command stores them, coded and quantised, found by key from worker
    processes."""
    writer = LabelWriter(
        tmp_path / "labels", {"experts": "exact"}, toy.ToyLabels().tasks, toy.ToyLabels.classes
    )
    for shard in pairs.shards:
        with writer.shard(shard.name) as file:
            for index in pairs.iter_shard(shard):
                file.add(
                    pairs.key(index), encode(toy.scene(int(pairs.key(index).split("/")[1]))[2])
                )
    writer.finish([writer.finished(shard.name) for shard in pairs.shards])
    store = LabelStore(tmp_path / "labels")
    start = load_pretrained_clip("random", "tiny")

    def batches(labels):
        return TrainDataset(
            pairs, labels, CLIPTEX, tokenizer=start.tokenizer, data=start.data, label_size=16
        )

    stored, exact = next(iter(batches(store).loader(1, workers=1))), batches(toy.ToyLabels())[1]
    assert torch.equal(stored.targets["seg"], exact.targets["seg"]) and not stored.unlabelled
    cosine = torch.cosine_similarity(stored.targets["normal"], exact.targets["normal"], dim=1)
    assert cosine.min() > math.cos(math.radians(2))
    assert depth_loss(stored.targets["depth"], exact.targets["depth"])[0] / 16 < 2e-3
    result = run(replace(CLIPTEX, epochs=0.5), pairs, tmp_path / "w.safetensors", labels=store)
    assert (
        result.trained and backbones.load_checkpoint(result.path).extra["labels"] == store.identity
    )
