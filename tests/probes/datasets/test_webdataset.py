"""The webdataset layout: its samples, its errors, and the same numbers as clip-benchmark."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch.utils.data import DataLoader

import benchmark.catalog  # noqa: F401
from backbones.backbone import resizing
from benchmark.suites import SUITES
from cliptex_common.errors import UserError
from probes.datasets import webdataset
from probes.datasets.base import Sample
from probes.datasets.check import find_folder, prepare
from probes.registry import DATASETS, find_task
from reports.per_image import image_scores
from tests.probes.datasets import make
from tests.probes.whole_images import Colours, context

CLASSES = ("red", "dark_red", "green", "blue", "white", "grey", "pale blue")


class Noisy(Colours):
    """Encodes colours and names with an error, so that scores are neither 0 nor 100."""

    def encode_image(self, images):
        embeddings = super().encode_image(images)
        return embeddings + 0.5 * torch.sin(9999 * embeddings)

    def encode_text(self, texts):
        noise = [[text_noise(text, index) for index in range(self.embed_dim)] for text in texts]
        return super().encode_text(texts) + 0.3 * torch.tensor(noise)


def text_noise(text: str, dimension: int) -> float:
    letters = enumerate(text)
    total = sum((index + 1) * (dimension + 2) * ord(letter) for index, letter in letters)
    return total % 101 / 50 - 1


def run(task, root, **settings):
    spec, probe = find_task(task)
    return probe, probe.run(context(probe, spec, root, backbone=Noisy(), **settings))


class Texts(list):
    """The output of a tokenizer for clip-benchmark: our backbones take the texts themselves."""

    def to(self, device):
        return self


def clip_benchmark_data(name, root, collate=None):
    """clip-benchmark's own reader of a folder, with our image transform."""
    from clip_benchmark.datasets.builder import build_wds_dataset

    data = Noisy().data
    pixels = resizing(data, data.interpolation)
    mean, std = (255 * torch.tensor(each).view(3, 1, 1) for each in (data.mean, data.std))

    def transform(image):
        return (pixels(image.convert("RGB")).float() - mean) / std

    dataset = build_wds_dataset(name, transform, data_dir=str(root))
    batches = dataset.batched(8, collation_fn=collate) if collate else dataset.batched(8)
    return dataset, DataLoader(batches, batch_size=None)


def test_images_are_listed_shard_by_shard_and_read_in_place(tmp_path):
    root = make.make_wds(tmp_path / "wds_cifar10", 2, 3)
    spec = DATASETS["cifar10"]
    assert find_folder(spec, tmp_path, {}) == root
    data = prepare(spec, root)
    assert data.samples["val"][0] == Sample("test/0.tar/s0000000.png", 0)
    assert [sample.target for sample in data.samples["val"]] == 3 * [0, 1, 2, 3]
    shards = [sample.image[:10] for sample in data.samples["val"]]
    assert shards == 6 * ["test/0.tar"] + 6 * ["test/1.tar"]
    assert data.partial, "the official test set has 10,000 images"
    assert data.classes == tuple(make.COLOURS)
    assert data.spec.extra["templates"] == ("a photo of a {c}.", "{c}, seen from afar")
    assert prepare(spec, root).fingerprint == data.fingerprint
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    assert prepare(spec, root).fingerprint != data.fingerprint, "prompts are part of the identity"


def test_names_of_folders(tmp_path):
    """A / in a name is -, and DataComp's folders end in _test."""
    for name, folder in (
        ("vtab-cifar100", "wds_vtab-cifar100"),
        ("vtab-pets", "wds_vtab-pets_test"),
        ("fairness-geode", "wds_geode_test"),
        ("retrieval-flickr_1k_test_image_text_retrieval", "wds_flickr30k"),
    ):
        (tmp_path / folder).mkdir()
        assert find_folder(DATASETS[name], tmp_path, {}).name == folder


def test_any_other_folder_is_a_dataset_too(tmp_path, monkeypatch):
    monkeypatch.setattr(DATASETS, "data", dict(DATASETS))
    make.make_wds(tmp_path / "wds_my-set", 0, 2)
    make.make_wds(tmp_path / "wds_my-captions", 0, 2, captions=2)
    (tmp_path / "wds_odd").mkdir()
    (tmp_path / "wds_odd/dataset_type.txt").write_text("multilabel\n")
    (tmp_path / "wds_mnist").mkdir()
    assert webdataset.register_folders(tmp_path) == ["my-captions", "my-set"]
    assert webdataset.register_folders(tmp_path) == []
    assert find_task("my-captions/retrieval")[1].metrics
    assert run("my-set/zero-shot", tmp_path / "wds_my-set")[1].metrics["top1"] > 0


def test_a_member_that_changed_is_read_again(tmp_path):
    root = make.make_wds(tmp_path / "wds_cifar10", 0, 2)
    first = prepare(DATASETS["cifar10"], root, splits={"val": None}).fingerprint
    shard = root / "test/0.tar"
    members = {each: webdataset.read_bytes(shard / each) for each in webdataset.members(shard)}
    make.write_tar(
        shard, {**members, "s0000000.png": make.encoded(np.zeros((32, 40, 3), np.uint8))}
    )
    assert prepare(DATASETS["cifar10"], root, splits={"val": None}).fingerprint != first


@pytest.mark.parametrize(
    ("name", "main"),
    [
        ("cifar10", "top1"),
        ("vtab-pets", "mean_per_class_recall"),
        ("wilds-iwildcam", "f1_macro"),
    ],
)
def test_zero_shot_agrees_with_clip_benchmark(tmp_path, name, main):
    oracle = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    root = make.make_wds(tmp_path / f"wds_{name}", 0, 5, classes=CLASSES)
    probe, result = run(f"{name}/zero-shot", root)
    assert next(iter(probe.metrics)) == main
    dataset, loader = clip_benchmark_data(name, root)
    loader.dataset.classes = dataset.classes
    reference = oracle.evaluate(
        Noisy(), loader, Texts, dataset.classes, dataset.templates, "cpu", amp=False
    )
    targets, prediction = result.per_image["label"], result.per_image["prediction"]
    f1 = f1_score(targets, prediction, average="macro", labels=np.unique(targets))
    expected = {
        "top1": reference["acc1"],
        "top5": reference["acc5"],
        "mean_per_class_recall": reference["mean_per_class_recall"],
        "f1_macro": f1,
    }
    assert 10 < result.metrics["top1"] < 95
    for metric in {"top1", "top5", main}:
        assert result.metrics[metric] == pytest.approx(100 * expected[metric], abs=1e-6)


def test_retrieval_agrees_with_clip_benchmark(tmp_path):
    oracle = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    from clip_benchmark.datasets.builder import image_captions_collate_fn

    name = "retrieval-flickr_1k_test_image_text_retrieval"
    root = make.make_wds(tmp_path / "wds_flickr30k", 0, 4, classes=CLASSES, captions=3)
    # no caption twice: ours is right for each image that has it
    for shard in (root / "test").glob("*.tar"):
        members = {each: webdataset.read_bytes(shard / each) for each in webdataset.members(shard)}
        for member, content in members.items():
            if member.endswith("txt"):
                members[member] = content.replace(b"a ", member[:8].encode() + b" ")
        make.write_tar(shard, members)
    probe, result = run(f"{name}/retrieval", root)
    _, loader = clip_benchmark_data(name, root, image_captions_collate_fn)
    reference = oracle.evaluate(Noisy(), loader, Texts, "cpu", amp=False, recall_k_list=[1, 5, 10])
    assert next(iter(probe.metrics)) == "mean_R@1"
    expected = {
        f"{way}_R@{k}": 100 * reference[f"{side}_retrieval_recall@{k}"]
        for way, side in (("i2t", "text"), ("t2i", "image"))
        for k in (1, 5, 10)
    }
    expected["mean_R@1"] = (expected["i2t_R@1"] + expected["t2i_R@1"]) / 2
    for metric, value in expected.items():
        assert result.metrics[metric] == pytest.approx(value, abs=1e-4)
    assert result.metrics["mean_R@1"] > 1


@pytest.mark.parametrize(
    ("name", "main"),
    [("wilds-fmow", "worst_group_top1"), ("fairness-dollar_street", "worst_group_top5")],
)
def test_the_worst_group(tmp_path, name, main):
    root = make.make_wds(tmp_path / f"wds_{name}", 0, 6, classes=CLASSES, groups=3)
    probe, result = run(f"{name}/zero-shot", root)
    assert next(iter(probe.metrics)) == main
    hit, group = result.per_image["rank"] < int(main[-1]), result.per_image["group"]
    assert group.tolist() == [index // 7 % 3 for index in range(42)]

    def worst(weights):
        return min(
            100 * np.average(hit[group == each], weights=weights[group == each])
            for each in range(3)
        )

    assert result.metrics[main] == pytest.approx(worst(np.ones(42)))
    scores = image_scores("classification", result.per_image)
    weights = np.random.default_rng(0).integers(0, 3, (5, 42))
    assert scores.metrics[main](weights) == pytest.approx([worst(row) for row in weights])


def test_winogavil(tmp_path):
    root = tmp_path / "wds_misc-winogavil"
    right, *_ = make.make_winogavil(root)
    spec, probe = find_task("misc-winogavil/zero-shot")
    result = probe.run(context(probe, spec, root))
    for name, value in {"jaccard_10-12": 100, "jaccard_5-6": 50, "jaccard": 200 / 3}.items():
        assert result.metrics[name] == pytest.approx(value)
    (root / "instances.json").write_text(json.dumps([{**right, "candidates": ["nowhere"]}]))
    with pytest.raises(UserError, match="names the image 'nowhere'"):
        spec.list_samples(root, "val")


def test_the_suite_of_38_datasets():
    tasks = SUITES["zeroshot38"].tasks
    assert len(tasks) == len(webdataset.DATACOMP) == 38
    assert len({spec.about for spec in webdataset.DATACOMP}) == 38
    assert all(find_task(task)[1].metrics for task in tasks)
