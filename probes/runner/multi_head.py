"""Multi-head training: the heads of a task group on one frozen backbone, whose maps are computed
once a batch for all of them.

Each head is a whole model of its own (``probes.runner.member``); they share the parts that have no
weights, and their data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict
from torch import nn

from probes.runner.group_data import prepared
from probes.runner.member import Member, leaves
from probes.runner.shared_parts import SharedOutputs, counted, share_parts


class MultiHead(BaseModel):
    """The models of a group as one that mmengine's Runner trains.

    An iteration is one for every member that has done just as many; one that is ahead, because it
    was stopped later, waits until the group has come so far. One that breaks leaves with its error,
    and the others go on.

    Args:
        members: of one backbone, data and seed, not all of which have ended.
        places: whose ground truth each member takes; see ``GroupDataset``.

    Attributes:
        iteration: that is to come.
    """

    def __init__(self, members: Sequence[Member], places: Sequence[int]) -> None:
        super().__init__()
        self.members, self.places = list(members), list(places)
        self.heads = nn.ModuleList([member.model for member in members])
        self._parts = share_parts(list(self.heads))
        self.iteration = min((member.iteration for member in members if member.trains), default=0)
        self._since = time.perf_counter()

    @property
    def trains(self) -> bool:
        """Whether any head has iterations left."""
        return any(member.trains for member in self.members)

    @property
    def optim_wrapper(self) -> OptimWrapperDict:
        """Each head's own optimizer."""
        return OptimWrapperDict(
            **{str(place): member.optim_wrapper for place, member in enumerate(self.members)}
        )

    def init_weights(self) -> None:
        """Nothing is left to do: each head was initialised by random numbers of its own."""

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> list[Any]:
        """What each head gives for one prepared batch under mmengine's ``mode``."""
        with self._sharing(False):
            return [head(inputs, data_samples, mode=mode) for head in self.heads]

    def train_step(self, data: Mapping[str, Any], optim_wrapper: Any = None) -> dict[str, Any]:
        """One iteration of those whose turn it is; nothing is returned, since reading a loss would
        wait for the device."""
        members = [
            each for each in self.members if each.trains and each.iteration == self.iteration
        ]
        if members:
            count = any(not member.step_flops for member in members)
            for member, flops in self._each(members, Member.step, self._batches(data, True), count):
                member.step_flops = member.step_flops or flops
            now = time.perf_counter()
            for member in members:
                member.seconds += (now - self._since) / len(members)
            self._since = now
            for member in members:
                if member.error is None:
                    with leaves(member):
                        member.settle()
        self.iteration += 1
        return {}

    def test_step(self, data: Mapping[str, Any], count: bool = False) -> dict[Member, float]:
        """Score a batch by each head that did not leave; its operations as if it were alone, if
        they are to be counted."""
        working = [member for member in self.members if member.error is None]
        batches = self._batches(data, False)
        return dict(self._each(working, Member.score, batches, count))

    def _batches(self, data: Mapping[str, Any], training: bool) -> dict[Member, dict[str, Any]]:
        batches = prepared(self.members[0].model.data_preprocessor, data, self.places, training)
        return dict(zip(self.members, batches, strict=True))

    def _each(
        self,
        members: Sequence[Member],
        action: Callable[[Member, Mapping[str, Any]], None],
        batches: Mapping[Member, Mapping[str, Any]],
        count: bool,
    ) -> Iterator[tuple[Member, float]]:
        with self._sharing(count) as outputs:
            for member in members:
                with leaves(member):
                    reused = outputs.reused_flops
                    _, own = counted(partial(action, member, batches[member]), count)
                    yield member, float(own + outputs.reused_flops - reused)

    @contextmanager
    def _sharing(self, count: bool) -> Iterator[SharedOutputs]:
        outputs = SharedOutputs(count)
        for part in self._parts:
            part.outputs = outputs
        try:
            yield outputs
        finally:
            for part in self._parts:
                part.outputs = None
