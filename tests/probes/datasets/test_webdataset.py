"""The webdataset layout: what is listed, what is refused, and the same figures as clip-benchmark's
own functions."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import benchmark.catalog  # noqa: F401
from benchmark.suites.registry import SUITES
from common.errors import UserError
from probes.datasets.base import Sample
from probes.datasets.check import find_folder, prepare
from probes.datasets.specs import webdataset
from probes.image_level.encode import eval_transform as transform_of
from probes.registry import DATASETS, find_task
from reports.stats.per_image import image_scores
from tests.probes.datasets import make
from tests.probes.whole_images import Colours, context

CLASSES = ("red", "dark_red", "green", "blue", "white", "grey", "pale blue")


class Noisy(Colours):
    """Sees colours a little wrong, and reads names a little wrong, so that scores are neither 0 nor
    100."""

    def encode_image(self, images):
        seen = super().encode_image(images)
        return seen + 0.5 * torch.sin(9999 * seen)

    def encode_text(self, texts):
        marks = torch.tensor(
            [[hash_of(text, index) for index in range(self.embed_dim)] for text in texts]
        )
        return super().encode_text(texts) + 0.3 * marks


def hash_of(text: str, dimension: int) -> float:
    return (
        sum((index + 1) * (dimension + 2) * ord(letter) for index, letter in enumerate(text))
        % 101
        / 50
        - 1
    )


def run(task, root, **settings):
    spec, probe = find_task(task)
    around = context(probe, spec, root, backbone=Noisy(), **settings)
    return probe, probe.run(around)


def test_images_are_listed_shard_by_shard_and_read_in_place(tmp_path):
    root = make.make_wds(tmp_path / "wds_cifar10", 2, 3)
    spec = DATASETS["cifar10"]
    assert find_folder(spec, tmp_path, {}) == root
    data = prepare(spec, root)
    assert data.samples["val"][0] == Sample("test/0.tar/s0000000.png", 0)
    assert [sample.target for sample in data.samples["val"]] == 3 * [0, 1, 2, 3]
    assert [sample.image[:10] for sample in data.samples["val"]] == 6 * ["test/0.tar"] + 6 * [
        "test/1.tar"
    ]
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
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS))
    make.make_wds(tmp_path / "wds_my-set", 0, 2)
    make.make_wds(tmp_path / "wds_my-captions", 0, 2, captions=2)
    (tmp_path / "wds_odd").mkdir()
    (tmp_path / "wds_odd/dataset_type.txt").write_text("multilabel\n")
    (tmp_path / "wds_mnist").mkdir()
    assert webdataset.register_folders(tmp_path) == ["my-captions", "my-set"]
    assert webdataset.register_folders(tmp_path) == []
    assert find_task("my-captions/retrieval")[1].metrics
    assert run("my-set/zero-shot", tmp_path / "wds_my-set")[1].metrics["top1"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "test/1.tar").unlink(), "1 of 2 shards are missing"),
        (lambda root: make.truncate(root / "test/1.tar"), "cut off"),
        (lambda root: (root / "test/nshards.txt").write_text("many\n"), "number of shards"),
        (lambda root: (root / "dataset_type.txt").write_text("retrieval\n"), "has no s0000000.txt"),
        (
            lambda root: (root / "classnames.txt").write_text("one\n"),
            "has class 1, but cifar10 has 1 classes",
        ),
        (lambda root: (root / "classnames.txt").unlink(), "classnames.txt is missing"),
        (
            lambda root: (root / "zeroshot_classification_templates.txt").write_text("a photo\n"),
            "no place {c}",
        ),
        (
            lambda root: make.tar_of(root / "test/0.tar", {"s.png": b"", "s.cls": b"cat"}),
            "no class number",
        ),
        (
            lambda root: make.tar_of(root / "test/0.tar", {"s.png": b"", "s.cls": b"\xff1"}),
            "s.cls is not UTF-8",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    root = make.make_wds(tmp_path / "wds_cifar10", 0, 2)
    change(root)
    with pytest.raises(UserError, match=message):
        prepare(DATASETS["cifar10"], root, splits=["val"])


def test_a_member_that_changed_is_read_again(tmp_path):
    root = make.make_wds(tmp_path / "wds_cifar10", 0, 2)
    first = prepare(DATASETS["cifar10"], root, splits=["val"]).fingerprint
    members = {
        f"s{n}.{end}": content
        for n in range(8)
        for end, content in (
            ("png", make.encoded(np.full((32, 40, 3), 9 * n, np.uint8))),
            ("cls", str(n % 4).encode()),
        )
    }
    make.tar_of(root / "test/0.tar", members)
    assert prepare(DATASETS["cifar10"], root, splits=["val"]).fingerprint != first


@pytest.mark.parametrize("name", ["cifar10", "vtab-pets", "wilds-iwildcam"])
def test_zero_shot_is_clip_benchmarks(tmp_path, name):
    oracle = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    from clip_benchmark.datasets.builder import build_wds_dataset
    from sklearn.metrics import f1_score

    root, model = make.make_wds(tmp_path / f"wds_{name}", 0, 5, classes=CLASSES), Noisy()
    probe, result = run(f"{name}/zero-shot", root)
    mean, std = (
        255 * torch.tensor(each).view(3, 1, 1) for each in (model.data.mean, model.data.std)
    )
    pixels = transform_of(model.data.size, model.data)
    theirs = build_wds_dataset(
        name, lambda image: (pixels(image.convert("RGB")).float() - mean) / std, data_dir=str(root)
    )
    loader = DataLoader(theirs.batched(8), batch_size=None)
    loader.dataset.classes = theirs.classes
    reference = oracle.evaluate(
        model, loader, Texts, theirs.classes, theirs.templates, "cpu", amp=False
    )
    main = next(iter(probe.metrics))
    assert {"cifar10": "top1", "vtab-pets": "mean_per_class_recall", "wilds-iwildcam": "f1_macro"}[
        name
    ] == main
    assert 10 < result.metrics["top1"] < 95
    assert result.metrics["top1"] == pytest.approx(100 * reference["acc1"], abs=1e-6)
    assert result.metrics["top5"] == pytest.approx(100 * reference["acc5"], abs=1e-6)
    if name == "vtab-pets":
        assert result.metrics[main] == pytest.approx(
            100 * reference["mean_per_class_recall"], abs=1e-6
        )
    if name == "wilds-iwildcam":
        targets, prediction = result.per_image["label"], result.per_image["prediction"]
        expected = f1_score(targets, prediction, average="macro", labels=np.unique(targets))
        assert result.metrics[main] == pytest.approx(100 * expected, abs=1e-6)
    scores = image_scores("classification", result.per_image)
    weights = np.ones((1, len(result.per_image["rank"])))
    for metric, value in result.metrics.items():
        assert scores.metrics[metric](weights)[0] == pytest.approx(value, abs=1e-6)


class Texts(list):
    """What a tokenizer of clip-benchmark gives: our backbones take texts as they are."""

    def to(self, device):
        return self


def test_retrieval_is_clip_benchmarks(tmp_path):
    oracle = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn

    name, model = "retrieval-flickr_1k_test_image_text_retrieval", Noisy()
    root = make.make_wds(tmp_path / "wds_flickr30k", 0, 4, classes=CLASSES, captions=3)
    for tar in (root / "test").glob(
        "*.tar"
    ):  # no caption twice: ours is right for each image that has it
        members = {
            member: webdataset.read_bytes(tar / member) for member in webdataset.members(tar)
        }
        make.tar_of(
            tar,
            {
                m: c.replace(b"a ", m[:8].encode() + b" ") if m.endswith("txt") else c
                for m, c in members.items()
            },
        )
    probe, result = run(f"{name}/retrieval", root)
    mean, std = (
        255 * torch.tensor(each).view(3, 1, 1) for each in (model.data.mean, model.data.std)
    )
    pixels = transform_of(model.data.size, model.data)
    theirs = build_wds_dataset(
        name, lambda image: (pixels(image.convert("RGB")).float() - mean) / std, data_dir=str(root)
    )
    loader = DataLoader(theirs.batched(8, collation_fn=image_captions_collate_fn), batch_size=None)
    reference = oracle.evaluate(model, loader, Texts, "cpu", amp=False, recall_k_list=[1, 5, 10])
    assert next(iter(probe.metrics)) == "mean_R@1"
    for way, side in (("i2t", "text"), ("t2i", "image")):
        for k in (1, 5, 10):
            assert result.metrics[f"{way}_R@{k}"] == pytest.approx(
                100 * reference[f"{side}_retrieval_recall@{k}"], abs=1e-4
            )
    expected = 50 * (reference["text_retrieval_recall@1"] + reference["image_retrieval_recall@1"])
    assert 1 < result.metrics["mean_R@1"] == pytest.approx(expected, abs=1e-4)
    scores = image_scores("image-text", result.per_image)
    assert scores.metrics["mean_R@1"](np.ones((1, 28)))[0] == pytest.approx(
        result.metrics["mean_R@1"]
    )


@pytest.mark.parametrize("name", ["wilds-fmow", "fairness-dollar_street"])
def test_the_worst_group(tmp_path, name):
    root = make.make_wds(tmp_path / f"wds_{name}", 0, 6, classes=CLASSES, groups=3)
    probe, result = run(f"{name}/zero-shot", root)
    main = next(iter(probe.metrics))
    assert (
        main
        == {"wilds-fmow": "worst_group_top1", "fairness-dollar_street": "worst_group_top5"}[name]
    )
    hit, group = result.per_image["rank"] < int(main[-1]), result.per_image["group"]
    assert group.tolist() == [index // 7 % 3 for index in range(42)]
    shares = [100 * hit[group == each].mean() for each in range(3)]
    assert result.metrics[main] == pytest.approx(min(shares))
    assert main[-1] == "5" or min(shares) < np.mean(shares) - 1
    scores = image_scores("classification", result.per_image)
    weights = np.random.default_rng(0).integers(0, 3, (5, 42))
    resampled = scores.metrics[main](weights)
    expected = [
        min(100 * np.average(hit[group == g], weights=w[group == g]) for g in range(3))
        for w in weights
    ]
    assert resampled == pytest.approx(expected)


def test_the_linear_probe_and_k_nearest_neighbours_work_on_the_same_folders(tmp_path):
    root = make.make_wds(tmp_path / "wds_vtab-pets", 5, 3)
    for name, settings in (
        ("linear", {"epochs": 20}),
        ("knn", {"neighbours": (1, 3)}),
        ("few-shot", {"shots": 2}),
    ):
        probe, result = run(f"vtab-pets/{name}", root, **settings)
        assert next(iter(probe.metrics)) == "mean_per_class_recall"
        assert result.metrics["mean_per_class_recall"] > 60


def test_winogavil(tmp_path):
    """Cues name colours; candidates whose colour it is are associated."""
    root, rng = tmp_path / "wds_misc-winogavil", np.random.default_rng(0)
    names = [
        f"{colour}{number}" for colour in ("red", "green", "blue", "white") for number in range(3)
    ]
    images = {
        f"{name}.png": make.encoded(make.picture(rng, (40, 32), make.COLOURS[name[:-1]]))
        for name in names
    }
    make.tar_of(root / "test/0.tar", images)
    right = {"cue": "Red", "candidates": names, "associations": ["red0", "red1", "red2"]}
    few = {"cue": "blue", "candidates": names[2:8], "associations": names[6:8]}
    wrong = {"cue": "red", "candidates": names[2:7], "associations": ["green0"]}
    (root / "instances.json").write_text(json.dumps([right, few, wrong]))
    spec, probe = find_task("misc-winogavil/zero-shot")
    result = probe.run(context(probe, spec, root))
    assert result.metrics["jaccard_10-12"] == 100
    assert result.metrics["jaccard_5-6"] == 50
    assert result.metrics["jaccard"] == pytest.approx(200 / 3)
    scores = image_scores("association", result.per_image)
    assert {
        name: scores.metrics[name](np.ones((1, 3)))[0] for name in result.metrics
    } == pytest.approx(result.metrics)
    (root / "instances.json").write_text(json.dumps([{**right, "candidates": ["nowhere"]}]))
    with pytest.raises(UserError, match="names the image 'nowhere'"):
        spec.list_samples(root, "val")


def test_the_38(tmp_path):
    """Their number, their main metrics, and which of them a folder holds."""
    suite = SUITES["zeroshot38"]
    assert (
        len(suite.tasks)
        == len(webdataset.TASKS)
        == len({task.title for task in webdataset.TASKS})
        == 38
    )
    main = {task: next(iter(find_task(task)[1].metrics)) for task in suite.tasks}
    counts = {metric: list(main.values()).count(metric) for metric in main.values()}
    assert counts == {
        "top1": 27,
        "mean_per_class_recall": 4,
        "mean_R@1": 2,
        "jaccard_10-12": 1,
        "f1_macro": 1,
        "worst_group_top1": 2,
        "worst_group_top5": 1,
    }
    present = {"cifar10", "vtab-dtd", "fairness-geode"}
    for name in present:
        (tmp_path / DATASETS[name].other_folders[-1]).mkdir()
    names = set()
    for name in suite.tasks:
        spec = DATASETS[name.partition("/")[0]]
        try:
            find_folder(spec, tmp_path, {})
            names.add(spec.name)
        except UserError as error:
            assert spec.folder in str(error)
    assert names == present
