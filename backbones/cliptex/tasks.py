"""Dense tasks by name; the tasks themselves stand in ``targets``.

Importing this imports neither torch nor a task.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cliptex_common.errors import UserError
from cliptex_common.registry import Registry, instance_of

if TYPE_CHECKING:
    from backbones.cliptex.targets import LabelMap, Task

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


def find_label_map(name: str) -> LabelMap:
    """The task called ``name``. Raises ``UserError`` if it learns without labels, or there is none
    of that name."""
    from backbones.cliptex.targets import LabelMap

    task = find_task(name)
    if not isinstance(task, LabelMap):
        raise UserError(f"task {name!r} learns without labels, so it has none; leave it out")
    return task


def labelled_tasks(names: Iterable[str]) -> tuple[str, ...]:
    """Those of ``names`` that learn from stored labels."""
    from backbones.cliptex.targets import LabelMap

    return tuple(name for name in names if isinstance(find_task(name), LabelMap))


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
