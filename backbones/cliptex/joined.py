"""Manual labels joined with pseudo-labels: pair by pair, the first store that knows a task wins (paper, Table 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from backbones.cliptex.batches import Labels
from backbones.errors import UserError
from backbones.files import content_key


class JoinedLabels:
    """Several label stores as one; earlier stores have priority, pair by pair and task by task.

    Raises:
        UserError: two stores with segmentation classes name them differently.
    """

    def __init__(self, stores: Sequence[Labels]) -> None:
        named = [store for store in stores if len(store.classes)]
        for store in named[1:]:
            if list(store.classes) != list(named[0].classes):
                raise UserError(
                    f"label stores disagree on their classes ({', '.join(named[0].classes[:3])} … and "
                    f"{', '.join(store.classes[:3])} …); label both with one class list"
                )
        self.stores = list(stores)
        self.classes: Sequence[str] = list(named[0].classes) if named else []
        self.ignore_index = 65535
        self.identity = content_key([store.identity for store in stores], 32)

    def get(self, key: str) -> Mapping[str, np.ndarray]:
        """All label maps that any store has for ``key``. Raises ``KeyError`` when none has any."""
        joined: dict[str, np.ndarray] = {}
        for store in self.stores:
            try:
                maps = dict(store.get(key))
            except KeyError:
                continue
            if "seg" in maps:
                seg = np.asarray(maps["seg"])
                maps["seg"] = np.where(seg == store.ignore_index, self.ignore_index, seg.astype(np.int32))
            if "normal" in joined:
                maps.pop("confidence", None)  # it is the confidence in another store's normals
            joined |= {name: value for name, value in maps.items() if name not in joined}
        if not joined:
            raise KeyError(key)
        return joined
