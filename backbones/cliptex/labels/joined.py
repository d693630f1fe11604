"""Label maps of pairs, and several stores of them as one: manual labels joined with pseudo-labels
(paper, Table 7)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from cliptex_common.errors import UserError
from cliptex_common.files import content_key


class Labels(Protocol):
    """Label maps of full images at any resolution, by pair key (see ``labels.store.LabelStore``).

    Attributes:
        identity: digest of the labels.
        classes: task → class names, for tasks that have classes.
    """

    identity: str
    classes: Mapping[str, Sequence[str]]

    def get(self, key: str, tasks: Collection[str] | None = None) -> Mapping[str, np.ndarray]:
        """The pair's labels for those of ``tasks`` (None: all) that exist, as ``Task`` describes
        them. Raises ``KeyError`` if the pair has none."""

    def tasks_of(self, key: str) -> tuple[str, ...]:
        """The tasks that the pair has labels for."""


class JoinedLabels:
    """Several label stores as one; earlier stores have priority, pair by pair and task by task.

    Raises:
        UserError: two stores name the classes of a task differently.
    """

    def __init__(self, stores: Sequence[Labels]) -> None:
        self.classes: dict[str, Sequence[str]] = {}
        for store in stores:
            for task, names in store.classes.items():
                first = self.classes.setdefault(task, list(names))
                if first != list(names):
                    raise UserError(
                        f"label stores disagree on their classes of {task} ({', '.join(first[:3])}"
                        f" … and {', '.join(names[:3])} …); label both with one class list"
                    )
        self.stores = list(stores)
        self.identity = content_key([store.identity for store in stores], 32)

    def get(self, key: str, tasks: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """All labels that any store has for ``key``. Raises ``KeyError`` when none has any."""
        missing = set(self.tasks_of(key))
        if not missing:
            raise KeyError(key)
        if tasks is not None:
            missing &= set(tasks)
        joined: dict[str, np.ndarray] = {}
        for store in self.stores:
            if own := missing & set(store.tasks_of(key)):
                joined |= store.get(key, own)
                missing -= own
        return joined

    def tasks_of(self, key: str) -> tuple[str, ...]:
        """Tasks that any store has labels of ``key`` for."""
        return tuple(dict.fromkeys(task for store in self.stores for task in store.tasks_of(key)))
