"""Several images of one shape are evaluated at once; nothing else about an evaluation changes."""

from mmengine.dataset import DefaultSampler

from probes.train.sampling import SameShapeBatches


class Shapes:
    """A dataset of which only shapes are asked."""

    def __init__(self, *shapes):
        self.shapes = shapes

    def __len__(self):
        return len(self.shapes)

    def shape(self, index):
        return self.shapes[index]

    def own_size(self, index):
        return self.shapes[index][2:]


def batches(*shapes, **how):
    sampler = SameShapeBatches(DefaultSampler(Shapes(*shapes), shuffle=False), **how)
    assert len(sampler) == len(list(sampler))
    return list(sampler)


def test_neighbours_of_one_shape_go_together_in_order():
    low, wide = (48, 64, 40, 60), (64, 48, 60, 40)
    assert batches(low, low, low, wide, low, batch_size=2) == [[0, 1], [2], [3], [4]]
    assert batches(low, low, (48, 64, 48, 64), batch_size=8) == [
        [0, 1],
        [2],
    ]  # padded alike is not alike
    assert batches(low, low, low, batch_size=8, pixels=2 * 48 * 64 + 1) == [[0, 1], [2]]
    assert batches(low, low, batch_size=8, pixels=1) == [[0], [1]]
    assert batches(low, low, low, low, batch_size=8, outputs=2 * 40 * 60) == [[0, 1], [2, 3]]
