"""Manual labels joined with pseudo-labels: pair by pair, the first store that knows a task wins
(paper, Table 7)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from backbones.cliptex.data.dataset import Labels
from common.errors import UserError
from common.files import content_key


class JoinedLabels:
    """Several label stores as one; earlier stores have priority, pair by pair and task by task.

    Raises:
        UserError: two stores name the classes of a task differently.
    """

    def __init__(self, stores: Sequence[Labels]) -> None:
        self.classes: dict[str, Sequence[str]] = {}
        for store in stores:
            for task, names in store.classes.items():
                known = self.classes.setdefault(task, list(names))
                if known != list(names):
                    raise UserError(
                        f"label stores disagree on their classes of {task} ({', '.join(known[:3])}"
                        f" … and {', '.join(names[:3])} …); label both with one class list"
                    )
        self.stores = list(stores)
        self.identity = content_key([store.identity for store in stores], 32)

    def get(self, key: str, tasks: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """All labels that any store has for ``key``. Raises ``KeyError`` when none has any."""
        there = self.tasks_of(key)
        if not there:
            raise KeyError(key)
        missing = set(there) & set(there if tasks is None else tasks)
        joined: dict[str, np.ndarray] = {}
        for store in self.stores:
            if wanted := missing & set(store.tasks_of(key)):
                joined |= store.get(key, wanted)
                missing -= wanted
        return joined

    def tasks_of(self, key: str) -> tuple[str, ...]:
        """Which labels any store has of ``key``."""
        return tuple(dict.fromkeys(task for store in self.stores for task in store.tasks_of(key)))
