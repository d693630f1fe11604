"""Parts of a model without trained weights, which the models of a task group share: each output is
computed once a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from backbones.cliptex.cost import count_flops

T = TypeVar("T")


@dataclass
class _Output:
    inputs: Any  # kept alive, so that no other tensor takes their place in memory
    value: tuple[Tensor, ...]
    versions: list[int]
    flops: int


def counted(function: Callable[[], T], count: bool) -> tuple[T, int]:
    """What ``function`` gives, and its floating-point operations if they are to be counted."""
    if not count:
        return function(), 0
    results: list[T] = []
    flops = count_flops(lambda: results.append(function()))
    return results[0], flops


class SharedOutputs:
    """What shared parts gave for the tensors of one batch.

    Args:
        count: whether to count floating-point operations.

    Attributes:
        reused_flops: operations of all outputs that were taken a second time.
    """

    def __init__(self, count: bool = False) -> None:
        self.count, self.reused_flops = count, 0
        self._outputs: dict[Hashable, _Output] = {}

    def get(self, part: SharedPart, inputs: Any) -> tuple[Tensor, ...]:
        """``part.compute(inputs)``, from before if it was asked for already.

        Raises:
            RuntimeError: somebody changed that output in place, so that it is no longer what the
                part gives.
        """
        key = (
            id(part),
            *((one.data_ptr(), one.shape, one.stride(), one.dtype) for one in _tensors(inputs)),
        )
        if key in self._outputs:
            known = self._outputs[key]
            if known.versions != [one._version for one in known.value]:
                raise RuntimeError(
                    f"what {type(part).__name__} gave was changed in place, so that others cannot"
                    " use it"
                )
            self.reused_flops += known.flops
            return known.value
        value, flops = counted(lambda: part.compute(inputs), self.count)
        self._outputs[key] = _Output(inputs, value, [one._version for one in value], flops)
        return value


class SharedPart(nn.Module):
    """A part that gives a tuple of tensors for a tensor, or for several. Subclasses have
    ``compute``, and what it depends on in public attributes.

    Attributes:
        outputs: of the batch under way, while a group shares this part; None: each call computes.
    """

    outputs: SharedOutputs | None = None

    @property
    def signature(self) -> Hashable:
        """Parts of one type and signature give the same for the same inputs."""
        mine = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return repr(
            sorted(
                (name, value) for name, value in mine.items() if name not in ("training", "outputs")
            )
        )

    def compute(self, inputs: Any) -> tuple[Tensor, ...]:
        """The output, from the inputs and the public attributes alone."""
        raise NotImplementedError

    def forward(self, inputs: Any) -> tuple[Tensor, ...]:
        if self.outputs is None or any(
            one.requires_grad for one in _tensors(inputs)
        ):  # each has its own gradient
            return self.compute(inputs)
        return self.outputs.get(self, inputs)


def share_parts(models: Sequence[nn.Module]) -> list[SharedPart]:
    """Let the models use one object in the place of equal shared parts; returns those that are
    left."""
    found: dict[Hashable, SharedPart] = {}
    for model in models:
        for name, child in list(model.named_children()):
            if isinstance(child, SharedPart):
                setattr(model, name, found.setdefault((type(child), child.signature), child))
    return list(found.values())


def _tensors(inputs: Any) -> Sequence[Tensor]:
    return (inputs,) if isinstance(inputs, Tensor) else inputs
