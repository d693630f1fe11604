"""Several label stores as one: manual labels joined with pseudo-labels (paper, Table 7)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from backbones.cliptex.data.dataset import Labels
from cliptex_common.errors import UserError
from cliptex_common.files import content_key


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
