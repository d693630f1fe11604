"""Families of dense tasks by the kind of their datasets: one file and one registration each.

Importing this imports neither torch nor mmseg.
"""

from __future__ import annotations

from cliptex_common.registry import Registry, instance_of
from probes.dense.boundaries import Boundaries
from probes.dense.computed import Corners, OcclusionEdges, Orientation
from probes.dense.depth import Depth
from probes.dense.depth_order import DepthOrder
from probes.dense.foreground import Foreground
from probes.dense.normals import Normals
from probes.dense.segmentation import Segmentation
from probes.dense.task import DenseTask
from reports.per_image import SCORERS
from reports.records import KIND_LEVELS

DENSE_TASKS: Registry[DenseTask] = Registry("dense task", "dense_tasks", instance_of(DenseTask))
LOW = Corners(), Orientation(), Boundaries()
MID = Depth(), Normals(), DepthOrder(), OcclusionEdges(), Foreground()
for task in (Segmentation(), *MID, *LOW):
    DENSE_TASKS.register(task.name, task)
    SCORERS.register(task.name, task.image_scores)
    KIND_LEVELS[task.name] = task.level
