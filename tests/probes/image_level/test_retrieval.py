"""Retrieval: ranks against a brute-force oracle and torchmetrics, and properties that hold for any
embeddings."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_hit_rate

import probes.catalog  # noqa: F401
from common.errors import UserError
from probes.image_level.probe import RETRIEVAL
from probes.image_level.retrieval import by_image, recall, retrieval_ranks
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import Colours, context


def embeddings(seed, images, most_captions, width=6, tied=False):
    """Related images and captions; with ``tied`` of few directions, so that many similarities are
    equal, and with texts that come several times."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), rng.integers(1, most_captions + 1, images))
    rng.shuffle(owner)
    image = rng.normal(size=(images, width))
    caption = image[owner] + rng.normal(size=(len(owner), width))
    text = rng.integers(0, len(owner), len(owner)) if tied else np.arange(len(owner))
    if tied:
        image, caption = np.sign(image), np.sign(caption)
    as_float = (torch.from_numpy(each.astype(np.float32)) for each in (image, caption))
    return *as_float, torch.from_numpy(owner), torch.from_numpy(text)


def expected_rank(similarity, right):
    """The definition: the mean place of the first right answer over many random orders of the equal
    ones."""
    best = similarity[right].max()
    nearer, tied = (similarity > best + 1e-9).sum(), np.abs(similarity - best) <= 1e-9
    wrong, same = int((tied & ~right).sum()), int((tied & right).sum())
    # P(first right one at place k or later) = C(wrong, k) / C(wrong + same, k)
    return nearer + sum(
        math.comb(wrong, k) / math.comb(wrong + same, k) for k in range(1, wrong + 1)
    )


def brute_force(images, captions, owner, text):
    """Query by query."""
    unit = [
        torch.nn.functional.normalize(each.double(), dim=1).numpy() for each in (images, captions)
    ]
    similarity, owner, text = unit[0] @ unit[1].T, owner.numpy(), text.numpy()
    right = np.array([np.isin(text, text[owner == image]) for image in range(len(images))])
    return [
        [expected_rank(*pair) for pair in zip(*each, strict=True)]
        for each in ((similarity, right), (similarity.T, right.T))
    ]


cases = st.tuples(
    st.integers(0, 10**6), st.integers(1, 24), st.integers(1, 5), st.just(6), st.booleans()
)


@settings(max_examples=80, deadline=None)
@given(case=cases, cells=st.integers(1, 2500))
def test_ranks_are_those_of_brute_force_however_many_at_once(case, cells):
    ranks, wanted = (
        retrieval_ranks(*embeddings(*case), cells=cells),
        brute_force(*embeddings(*case)),
    )
    for found, right in zip(ranks, wanted, strict=True):
        assert found.tolist() == pytest.approx(right)


@settings(max_examples=60, deadline=None)
@given(case=cases, seed=st.integers(0, 99))
def test_the_order_of_images_and_captions_does_not_matter(case, seed):
    images, captions, owner, text = embeddings(*case)
    rng = np.random.default_rng(seed)
    moved_images = torch.from_numpy(rng.permutation(len(images)))
    moved_captions = torch.from_numpy(rng.permutation(len(captions)))
    new_place = torch.empty_like(moved_images)
    new_place[moved_images] = torch.arange(len(images))
    i2t, t2i = retrieval_ranks(images, captions, owner, text)
    i2t_moved, t2i_moved = retrieval_ranks(
        images[moved_images],
        captions[moved_captions],
        new_place[owner[moved_captions]],
        text[moved_captions],
    )
    assert torch.equal(i2t_moved, i2t[moved_images])
    assert torch.equal(t2i_moved, t2i[moved_captions])


@settings(max_examples=30, deadline=None)
@given(case=cases, scale=st.floats(1e-3, 1e3))
def test_the_length_of_embeddings_does_not_matter(case, scale):
    images, captions, owner, _ = embeddings(*case)
    i2t, t2i = retrieval_ranks(images * scale, captions, owner)
    assert recall(i2t, 1) == recall(retrieval_ranks(images, captions / scale, owner)[0], 1)
    assert recall(t2i, 1) <= recall(t2i, 5) <= recall(t2i, 10) <= 100


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_agrees_with_torchmetrics(k):
    images, captions, owner, _ = embeddings(0, 40, 5)
    i2t, t2i = retrieval_ranks(images, captions, owner, cells=256)
    cosine = (
        torch.nn.functional.normalize(images, dim=1)
        @ torch.nn.functional.normalize(captions, dim=1).T
    )
    right = owner[None] == torch.arange(40)[:, None]
    rows = zip(cosine, right, strict=True)
    columns = zip(cosine.T, right.T, strict=True)
    assert recall(i2t, k) == pytest.approx(
        100 * np.mean([retrieval_hit_rate(p, t, top_k=k) for p, t in rows])
    )
    assert recall(t2i, k) == pytest.approx(
        100 * np.mean([retrieval_hit_rate(p, t, top_k=k) for p, t in columns])
    )


def test_embeddings_that_are_all_alike_have_the_mean_rank_of_chance():
    i2t, t2i = retrieval_ranks(torch.ones(4, 3), torch.ones(12, 3), torch.arange(12) // 3)
    assert i2t.tolist() == [9 / 4] * 4  # nine wrong captions and three right ones in any order
    assert t2i.tolist() == [3 / 2] * 12
    assert recall(i2t, 1) == recall(t2i, 1) == 0


def test_the_same_text_under_another_image_is_right():
    images, captions = torch.eye(3), torch.eye(3)[[0, 0, 1, 2]]
    owner, text = (
        torch.tensor([0, 1, 1, 2]),
        torch.tensor([7, 7, 8, 9]),
    )  # the first caption stands under two images
    i2t, t2i = retrieval_ranks(images, captions, owner, text)
    assert i2t.tolist() == [0, 0, 0] and t2i.tolist() == [0, 0, 0, 0]
    i2t, t2i = retrieval_ranks(images, captions, owner)  # other words, embedded alike
    assert i2t.tolist() == [0.5, 0, 0] and t2i.tolist() == [0, 1.5, 0, 0]


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_agrees_with_clip_benchmark_where_no_caption_comes_twice(k):
    """Its ``recall_at_k`` and ``batchify`` need no model; 1.6 from PyPI, where it is installed."""
    oracle = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    images, captions, owner, _ = embeddings(0, 40, 5)
    i2t, t2i = retrieval_ranks(images, captions, owner, cells=256)
    unit = [torch.nn.functional.normalize(each, dim=1) for each in (images, captions)]
    scores = unit[1] @ unit[0].T
    pairs = torch.zeros_like(scores, dtype=torch.bool)
    pairs[torch.arange(len(scores)), owner] = True
    assert recall(t2i, k) == pytest.approx(
        100 * (oracle.recall_at_k(scores, pairs, k) > 0).double().mean().item()
    )
    assert recall(i2t, k) == pytest.approx(
        100 * (oracle.recall_at_k(scores.T, pairs.T, k) > 0).double().mean().item()
    )


def test_memory_is_bounded(monkeypatch):
    largest = 0
    product = torch.Tensor.__matmul__

    def watched(a, b):
        nonlocal largest
        result = product(a, b)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    retrieval_ranks(*embeddings(0, 50, 5), cells=640)
    assert 0 < largest <= 640


def test_caption_ranks_by_image():
    table = by_image(torch.tensor([5, 6, 7, 8]), torch.tensor([1, 0, 1, 1]), 2)
    assert table.tolist() == [[6, -1, -1], [5, 7, 8]]


def test_the_probe_end_to_end(tmp_path):
    root = make.make_flickr(tmp_path, 0, 4)  # four images, of four colours, which the captions name
    around = context(RETRIEVAL, DATASETS["flickr30k"], root)
    result = RETRIEVAL.run(around)
    assert set(RETRIEVAL.metrics) <= set(result.metrics)
    assert set(result.metrics.values()) == {100.0}
    assert result.per_image["image"].tolist() == [f"images/test{n:04d}.jpg" for n in range(4)]
    assert result.per_image["i2t_rank"].shape == (4,)
    assert result.per_image["t2i_rank"].shape == (4, 5)
    assert result.notes == ["4 images, 20 captions (20 different)"]


def test_the_template_is_used(tmp_path):
    heard = []

    class Ears(Colours):
        def encode_text(self, texts):
            heard.extend(texts)
            return super().encode_text(texts)

    root = make.make_flickr(tmp_path, 0, 2)
    spec = DATASETS["flickr30k"]
    RETRIEVAL.run(context(RETRIEVAL, spec, root, backbone=Ears(), template="a photo of {}"))
    assert heard[0] == "a photo of A red thing, seen 0 times in test0000.jpg ."
    with pytest.raises(UserError, match="template"):
        RETRIEVAL.run(context(RETRIEVAL, spec, root, template="no place"))
