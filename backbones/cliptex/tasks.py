"""Dense tasks by name: one file and one registration each.

Importing this imports neither torch nor a task.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cliptex_common.registry import Registry, instance_of

if TYPE_CHECKING:
    from backbones.cliptex.targets import Task

TARGETS = "backbones.cliptex.targets"
PAPER = ("seg", "depth", "normal")  # those of the paper: what ``cliptex`` learns


def _check(name: str, task: Any) -> Any:
    from backbones.cliptex.targets import Task

    return instance_of(Task)(name, task)


TASKS: Registry[Task] = Registry("task", "tasks", _check)
TASKS.register_lazy(
    "seg", f"{TARGETS}:SEG", "semantic segmentation: one class a pixel, 255 ignored"
)
TASKS.register_lazy("depth", f"{TARGETS}:DEPTH", "relative inverse depth, larger is nearer")
TASKS.register_lazy(
    "normal",
    f"{TARGETS}:NORMAL",
    "surface normals: x right, y up, z towards the camera",
)
find_task = TASKS.find


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names of tasks in their fixed order: the paper's, then the others by alphabet."""
    distinct = set(names)
    return (*(name for name in PAPER if name in distinct), *sorted(distinct - set(PAPER)))


def origins(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """``{"plugins": {task: sha256}}`` of the tasks that plugins registered, a part of the identity
    of labels and weights; ``{}`` if there are none."""
    plugins = {name: TASKS.origin(name)["plugin"] for name in ordered(names) if TASKS.origin(name)}
    return {"plugins": plugins} if plugins else {}


def task_names() -> tuple[str, ...]:
    """Names of all tasks; none is imported."""
    return ordered(TASKS.descriptions())
