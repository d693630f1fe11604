"""Normals have the same axes everywhere: in the files, in the probes, in what experts say, in the
store, augmented."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import benchmark.mini.datasets  # noqa: F401  (registers them)
from backbones.cliptex.data.augment import AXES, Geometry, warp_images, warp_normals
from backbones.cliptex.experts import load_experts, train_expert
from backbones.cliptex.labels.store import LabelStore, LabelWriter, encode
from backbones.cliptex.tasks import find_task
from backbones.cliptex.training.trainer import TrainContext
from benchmark.mini.layout import encode_normals
from benchmark.mini.render import render_ground_truth, render_image
from benchmark.mini.scene import make_scene
from probes.dense import data as dense_data
from probes.registry import DATASETS
from tests.backbones.cliptex.experts import toy_experts


def test_all_datasets_of_normals_say_the_same_axes():
    stored = {name: spec.extra["axes"] for name, spec in DATASETS.items() if spec.kind == "normals"}
    assert {"nyu-normal", "mini-normal"} <= set(stored) and set(stored.values()) == {AXES}


def test_experts_and_probes_read_the_truth_of_the_mini_world_alike(tmp_path):
    """The floor of a rendered room points up, whoever reads the file."""
    scene = make_scene(np.random.default_rng(3), "home", close_ups=0.0)
    target = render_ground_truth(scene, 64)
    Image.fromarray(encode_normals(target.normals)).save(tmp_path / "n.png")
    theirs = dense_data.read_normals(str(tmp_path / "n.png"))
    ours = np.moveaxis(find_task("normal").read(tmp_path / "n.png"), 0, -1)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(ours, target.normals, atol=0.01)
    up = scene.camera.axes @ np.array([0.0, 0.0, 1.0])  # the world's up in camera axes
    floor = target.normals @ up > 0.99
    assert floor.mean() > 0.05 and ours[floor][:, 1].min() > 0.3


def test_a_flip_does_to_labels_what_it_does_to_the_probes_truth():
    normals = np.random.default_rng(0).normal(size=(8, 8, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    probes = dense_data.FlipNormals().transform({"flip": True, "gt_seg_map": normals[:, ::-1]})[
        "gt_seg_map"
    ]
    flip = Geometry(torch.tensor([[0.5, 0.5, 1.0, 1.0]]), torch.tensor([True]), torch.zeros(1))
    ours = warp_normals([torch.from_numpy(normals).permute(2, 0, 1)], flip, 8)[0].permute(1, 2, 0)
    np.testing.assert_allclose(ours.numpy(), probes, atol=1e-6)


def test_turning_the_camera_turns_picture_and_normals_alike():
    """A camera rolled clockwise sees everything turned counter-clockwise: rendered, and
    augmented."""
    scene = make_scene(np.random.default_rng(5), "home", close_ups=0.0)
    plain, image = render_ground_truth(scene, 96), render_image(scene, 96, np.random.default_rng(0))
    angle = 0.3
    right, up, back = scene.camera.axes
    cos, sin = np.cos(angle), np.sin(angle)
    rolled = type(scene.camera)(
        scene.camera.position,
        np.stack([cos * right - sin * up, sin * right + cos * up, back]),
        scene.camera.tangent,
    )
    scene.camera = rolled
    target, picture = (
        render_ground_truth(scene, 96),
        render_image(scene, 96, np.random.default_rng(0)),
    )
    rotation = Geometry(
        torch.tensor([[0.5, 0.5, 1.0, 1.0]]), torch.tensor([False]), torch.tensor([angle])
    )
    moved = (
        warp_normals([torch.from_numpy(plain.normals).permute(2, 0, 1)], rotation, 96)[0]
        .permute(1, 2, 0)
        .numpy()
    )
    inner = np.s_[24:72, 24:72]
    agree = (moved[inner] * target.normals[inner]).sum(-1)
    assert np.median(agree) > 0.999 and np.mean(agree > 0.98) > 0.9
    seen = (
        warp_images(torch.from_numpy(image).permute(2, 0, 1)[None], rotation, 96)[0]
        .permute(1, 2, 0)
        .numpy()
    )
    assert (
        np.abs(seen[inner] - picture[inner]).mean()
        < np.abs(image[inner].astype(float) - picture[inner]).mean() / 2
    )


@pytest.fixture(scope="module")
def slopes(tmp_path_factory):
    """Light pictures of planes that look up, dark ones of planes that look down, as NYU."""
    root = tmp_path_factory.mktemp("slopes")
    for part, count in (("train", 16), ("test", 8)):
        for folder in ("images", "normals"):
            (root / "nyu" / folder / part).mkdir(parents=True)
        for i in range(count):
            shade = 60 + 140 * (i % 2)
            noise = np.random.default_rng(i).normal(0, 5, (32, 32, 3))
            Image.fromarray((shade + noise).clip(0, 255).astype(np.uint8)).save(
                root / f"nyu/images/{part}/{i}.png"
            )
            normal = np.broadcast_to(np.array([0.0, 0.6 if i % 2 else -0.6, 0.8]), (32, 32, 3))
            Image.fromarray(encode_normals(normal)).save(root / f"nyu/normals/{part}/{i}.png")
    return root


def test_what_an_expert_learned_from_the_files_is_stored_with_their_axes(slopes, tmp_path):
    settings = {
        **toy_experts.SMALL_UNET,
        "epochs": 20.0,
        "batch_size": 8,
        "lr": 3e-3,
        "color_jitter": 0.0,
    }
    train_expert("nll-angmf", slopes, tmp_path / "e", TrainContext(), settings)
    (expert,) = load_experts([f"nll-angmf={tmp_path / 'e'}"])
    writer = LabelWriter(tmp_path / "labels", {"test": 1}, ["normal"])
    with writer.shard("s") as shard:
        for i in range(8):
            image = np.array(Image.open(slopes / f"nyu/images/test/{i}.png"))
            maps = expert.predict(torch.from_numpy(image).permute(2, 0, 1)[None])
            shard.add(f"s/{i}", encode({"normal": maps["normal"][0]}))
    writer.finish([writer.finished("s")])
    store = LabelStore(tmp_path / "labels")
    target = np.stack(
        [
            dense_data.read_normals(str(slopes / f"nyu/normals/test/{i}.png"))[..., 1]
            for i in range(8)
        ]
    )
    stored = np.stack([store.get(f"s/{i}")["normal"][1] for i in range(8)])
    assert (
        np.sign(stored) == np.sign(target)
    ).mean() > 0.8  # with y the other way round it would be below 0.2
