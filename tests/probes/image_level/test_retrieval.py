"""Retrieval: ranks against a brute-force oracle, with equal similarities and repeated texts."""

import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from probes.image_level.probe import RETRIEVAL
from probes.image_level.text import by_image, retrieval_ranks
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
    similarity = normalize(images.double(), dim=1) @ normalize(captions.double(), dim=1).T
    similarity = similarity.numpy()
    owner, text = owner.numpy(), text.numpy()
    right = np.array([np.isin(text, text[owner == image]) for image in range(len(images))])
    i2t = [expected_rank(*query) for query in zip(similarity, right, strict=True)]
    t2i = [expected_rank(*query) for query in zip(similarity.T, right.T, strict=True)]
    return i2t, t2i


cases = st.tuples(st.integers(0, 10**6), st.integers(1, 24), st.integers(1, 5), st.booleans())


@settings(max_examples=80)
@given(case=cases, cells=st.integers(1, 2500))
def test_ranks_are_those_of_brute_force_however_many_at_once(case, cells):
    with patch("probes.image_level.text.CELLS", cells):
        ranks = retrieval_ranks(*embeddings(*case))
    for actual, expected in zip(ranks, brute_force(*embeddings(*case)), strict=True):
        assert actual.tolist() == pytest.approx(expected)


def test_ranks_of_captions_are_by_image():
    table = by_image(torch.tensor([5, 6, 7, 8]), torch.tensor([1, 0, 1, 1]), 2)
    assert table.tolist() == [[6, -1, -1], [5, 7, 8]]


def test_the_template_is_used(tmp_path):
    texts = []

    class Listener(Colours):
        def encode_text(self, batch):
            texts.extend(batch)
            return super().encode_text(batch)

    root, spec = make.make_flickr(tmp_path, 0, 2), DATASETS["flickr30k"]
    RETRIEVAL.run(context(RETRIEVAL, spec, root, backbone=Listener(), template="a photo of {}"))
    assert texts[0] == "a photo of A red thing, seen 0 times in test0000.jpg ."
    with pytest.raises(ValueError, match="template"):
        RETRIEVAL.run(context(RETRIEVAL, spec, root, template="no braces"))
