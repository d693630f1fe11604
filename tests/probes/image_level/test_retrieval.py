"""Retrieval: ranks against a brute-force oracle and torchmetrics, and properties that hold for any
embeddings."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torchmetrics.functional.retrieval import retrieval_hit_rate

import probes.catalog  # noqa: F401
from common.errors import UserError
from probes.image_level.probe import RETRIEVAL
from probes.image_level.retrieval import by_image, recall, retrieval_ranks
from probes.registry import DATASETS
from tests.probes.datasets import make
from tests.probes.whole_images import Colours, context


def embeddings(seed, images, most_captions, tied=False):
    """Related images and captions; with ``tied`` of few directions, so that many similarities are
    equal, and with texts that come several times."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), rng.integers(1, most_captions + 1, images))
    rng.shuffle(owner)
    image = rng.normal(size=(images, 6))
    caption = image[owner] + rng.normal(size=(len(owner), 6))
    text = np.arange(len(owner))
    if tied:
        text = rng.integers(0, len(owner), len(owner))
        image, caption = np.sign(image), np.sign(caption)
    arrays = image.astype(np.float32), caption.astype(np.float32), owner, text
    return tuple(map(torch.from_numpy, arrays))


def cosines(images, captions):
    return normalize(images.double(), dim=1) @ normalize(captions.double(), dim=1).T


def expected_rank(similarity, right):
    """The definition: the mean rank of the first right answer over all orders of the equal ones."""
    best = similarity[right].max()
    nearer, tied = (similarity > best + 1e-9).sum(), np.abs(similarity - best) <= 1e-9
    wrong, equal = int((tied & ~right).sum()), int((tied & right).sum())
    # P(first right one at rank k or later) = C(wrong, k) / C(wrong + equal, k)
    return nearer + sum(
        math.comb(wrong, k) / math.comb(wrong + equal, k) for k in range(1, wrong + 1)
    )


def brute_force(images, captions, owner, text):
    """Query by query."""
    similarity = cosines(images, captions).numpy()
    owner, text = owner.numpy(), text.numpy()
    right = np.array([np.isin(text, text[owner == image]) for image in range(len(images))])
    i2t = [expected_rank(*query) for query in zip(similarity, right, strict=True)]
    t2i = [expected_rank(*query) for query in zip(similarity.T, right.T, strict=True)]
    return i2t, t2i


cases = st.tuples(st.integers(0, 10**6), st.integers(1, 24), st.integers(1, 5), st.booleans())


@settings(max_examples=80, deadline=None)
@given(case=cases, cells=st.integers(1, 2500))
def test_ranks_are_those_of_brute_force_however_many_at_once(case, cells):
    ranks = retrieval_ranks(*embeddings(*case), cells=cells)
    for actual, expected in zip(ranks, brute_force(*embeddings(*case)), strict=True):
        assert actual.tolist() == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(case=cases, seed=st.integers(0, 99))
def test_the_order_of_images_and_captions_does_not_matter(case, seed):
    images, captions, owner, text = embeddings(*case)
    rng = np.random.default_rng(seed)
    image_order = torch.from_numpy(rng.permutation(len(images)))
    caption_order = torch.from_numpy(rng.permutation(len(captions)))
    new_index = torch.empty_like(image_order)
    new_index[image_order] = torch.arange(len(images))
    i2t, t2i = retrieval_ranks(images, captions, owner, text)
    new_owner = new_index[owner[caption_order]]
    i2t_shuffled, t2i_shuffled = retrieval_ranks(
        images[image_order], captions[caption_order], new_owner, text[caption_order]
    )
    assert torch.equal(i2t_shuffled, i2t[image_order])
    assert torch.equal(t2i_shuffled, t2i[caption_order])


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
    cosine = cosines(images, captions)
    right = owner[None] == torch.arange(40)[:, None]
    for ranks, scores, targets in ((i2t, cosine, right), (t2i, cosine.T, right.T)):
        rates = [retrieval_hit_rate(*row, top_k=k) for row in zip(scores, targets, strict=True)]
        assert recall(ranks, k) == pytest.approx(100 * np.mean(rates))


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_agrees_with_clip_benchmark_where_no_caption_comes_twice(k):
    """Its ``recall_at_k`` and ``batchify`` need no model; 1.6 from PyPI, where it is installed."""
    oracle = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    images, captions, owner, _ = embeddings(0, 40, 5)
    i2t, t2i = retrieval_ranks(images, captions, owner, cells=256)
    scores = cosines(captions, images).float()
    pairs = torch.zeros_like(scores, dtype=torch.bool)
    pairs[torch.arange(len(scores)), owner] = True
    for ranks, similarity, right in ((t2i, scores, pairs), (i2t, scores.T, pairs.T)):
        hits = oracle.recall_at_k(similarity, right, k) > 0
        assert recall(ranks, k) == pytest.approx(100 * hits.double().mean().item())


def test_equal_embeddings_have_the_mean_rank_of_chance():
    i2t, t2i = retrieval_ranks(torch.ones(4, 3), torch.ones(12, 3), torch.arange(12) // 3)
    assert i2t.tolist() == [9 / 4] * 4  # nine wrong captions and three right ones in any order
    assert t2i.tolist() == [3 / 2] * 12
    assert recall(i2t, 1) == recall(t2i, 1) == 0


def test_the_same_text_under_another_image_is_right():
    images, captions = torch.eye(3), torch.eye(3)[[0, 0, 1, 2]]
    # the first caption describes two images
    owner, text = torch.tensor([0, 1, 1, 2]), torch.tensor([7, 7, 8, 9])
    i2t, t2i = retrieval_ranks(images, captions, owner, text)
    assert i2t.tolist() == [0, 0, 0] and t2i.tolist() == [0, 0, 0, 0]
    i2t, t2i = retrieval_ranks(images, captions, owner)  # different texts, equal embeddings
    assert i2t.tolist() == [0.5, 0, 0] and t2i.tolist() == [0, 1.5, 0, 0]


def test_memory_is_bounded(monkeypatch):
    sizes = []
    product = torch.Tensor.__matmul__

    def spy(a, b):
        result = product(a, b)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    retrieval_ranks(*embeddings(0, 50, 5), cells=640)
    assert 0 < max(sizes) <= 640


def test_caption_ranks_by_image():
    table = by_image(torch.tensor([5, 6, 7, 8]), torch.tensor([1, 0, 1, 1]), 2)
    assert table.tolist() == [[6, -1, -1], [5, 7, 8]]


def test_the_probe_end_to_end(tmp_path):
    root = make.make_flickr(tmp_path, 0, 4)  # four images, of four colours, which the captions name
    result = RETRIEVAL.run(context(RETRIEVAL, DATASETS["flickr30k"], root))
    assert set(RETRIEVAL.metrics) <= set(result.metrics)
    assert set(result.metrics.values()) == {100.0}
    assert result.per_image["image"].tolist() == [f"images/test{n:04d}.jpg" for n in range(4)]
    assert result.per_image["i2t_rank"].shape == (4,)
    assert result.per_image["t2i_rank"].shape == (4, 5)
    assert result.notes == ["4 images, 20 captions (20 different)"]


def test_the_template_is_used(tmp_path):
    texts = []

    class Listener(Colours):
        def encode_text(self, batch):
            texts.extend(batch)
            return super().encode_text(batch)

    root, spec = make.make_flickr(tmp_path, 0, 2), DATASETS["flickr30k"]
    RETRIEVAL.run(context(RETRIEVAL, spec, root, backbone=Listener(), template="a photo of {}"))
    assert texts[0] == "a photo of A red thing, seen 0 times in test0000.jpg ."
    with pytest.raises(UserError, match="template"):
        RETRIEVAL.run(context(RETRIEVAL, spec, root, template="no braces"))
