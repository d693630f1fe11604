"""Exact nearest neighbours: those of scikit-learn, whatever the chunks."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch.nn.functional import normalize

from probes.features.search import nearest_neighbours


@pytest.mark.parametrize("cells", [2**22, 40, 700])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_scikit_learns(metric, cells, monkeypatch):
    monkeypatch.setattr("probes.features.search.CPU_CELLS", cells)
    random = torch.Generator().manual_seed(0)
    queries, memory = torch.randn(31, 5, generator=random), torch.randn(97, 5, generator=random)
    _, expected = (
        NearestNeighbors(n_neighbors=7, metric=metric)
        .fit(memory.numpy())
        .kneighbors(queries.numpy())
    )
    if metric == "cosine":
        similar, index = nearest_neighbours(normalize(queries, dim=1), normalize(memory, dim=1), 7)
        assert torch.allclose(
            similar, (normalize(queries, dim=1) @ normalize(memory, dim=1).T).gather(1, index)
        )
    else:
        similar, index = nearest_neighbours(queries, memory, 7, -memory.square().sum(dim=1) / 2)
    assert np.array_equal(index.numpy(), expected)
    assert bool((similar.diff(dim=1) <= 0).all())


def test_chunks_of_the_memory_are_merged(monkeypatch):
    random = torch.Generator().manual_seed(0)
    queries, memory = (
        torch.randn(3, 4, generator=random),
        torch.randn(2**16 + 50, 4, generator=random),
    )
    similar, index = nearest_neighbours(queries, memory.half(), 5)
    exact, order = (queries @ memory.half().float().T).topk(5, dim=1)
    assert torch.equal(index, order) and torch.allclose(similar, exact)


def test_rows_are_prepared_and_left_out():
    memory = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]]).half()
    similar, index = nearest_neighbours(
        torch.tensor([[1.0, 0.0]]),
        memory,
        2,
        prepare=lambda part: normalize(part, dim=1),
        skip=torch.tensor([True, False, False]),
    )
    assert index.tolist() == [[2, 1]] and torch.allclose(similar, torch.tensor([[0.5**0.5, 0.0]]))
