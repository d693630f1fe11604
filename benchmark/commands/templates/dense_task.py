"""A family of dense tasks of your own: what a pixel is, how it is learnt and scored. Try it:

python -m benchmark run --plugin saliency.py --backbone random --task saliency-photos/linear \\
    --set max_iters=50 --set size=64 --data saliency-photos=DIR
"""

from torch import Tensor

from probes.datasets.base import DatasetSpec, mirrored
from probes.dense.probe import register_dense_task
from probes.dense.task import DenseTask
from probes.registry import register_dataset
from reports.records import Metric

# the main one first; -1: lower is better; others are in tables with shown=True
METRICS = {"MAE": Metric(-1, "")}


class Saliency(DenseTask):  # one number a pixel, black 0 and white 1 of a grey PNG
    name = "saliency"  # also the kind of its datasets
    metrics = METRICS
    unknown = -1.0  # fills what a crop has beside its image

    # prediction and target: (N, H, W)
    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        valid = target != self.unknown
        return (prediction - target)[valid].abs().sum(), valid.sum()  # not the mean

    # of one image, (1, H, W); metrics are means over images, or see ``summary``
    def score(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        valid = target != self.unknown
        return {"MAE": (prediction - target)[valid].abs().mean()}


register_dense_task(Saliency())  # every dense head is now a probe of its datasets

# DIR/images/train/ID.jpg with DIR/maps/train/ID.png, and the same of val
register_dataset(
    DatasetSpec(
        "saliency-photos",
        "saliency",
        "saliency-photos",
        mirrored("images/{part}", "maps/{part}"),
    )
)
