"""Fine-tuning of a backbone: a copy of which some weights train, by tier.

``all`` trains every weight that an output depends on, ``blocks:N`` those of the last N blocks
(stages of a CNN) and what follows them, ``lora:R`` matrices of rank R that are added to the
projections of attention (Hu et al., ICLR 2022), of a CNN to its 1×1 convolutions. All but drop path
stays in eval mode, so batch normalisation keeps its statistics.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from backbones.backbone import Backbone, state_sha256
from cliptex_common.errors import UserError

Read = Callable[[Backbone, Tensor], Sequence[Tensor]]  # of images (N, 3, H, W), what a task reads


class Tuning:
    """A copy of a backbone of which some weights train; the backbone itself is never changed.

    Args:
        backbone: frozen, of any adapter.
        tune: the tier: ``all``, ``blocks:N`` or ``lora:R``.
        read: the outputs that the task reads; what they do not depend on is not trained, such as a
            text tower or a classifier.
        size: (height, width) in pixels of training images. Tables of positions that an adapter
            resizes by copying the network are trained at its own size only.
        drop_path: highest rate of drop path, which grows linearly from 0 with depth, where the
            architecture has it and its blocks train.
        checkpointing: compute the activations of blocks again in the backward pass, which takes
            less memory and a third more time, and gives the same numbers.

    Attributes:
        backbone: the copy, on the device of the original.
        trained: name → parameter that trains, by its name in ``backbone.model``.

    Raises:
        UserError: there are fewer blocks, or no matrix to adapt.
    """

    def __init__(
        self,
        backbone: Backbone,
        tune: str,
        read: Read,
        size: tuple[int, int],
        *,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        self.tier, _, number = tune.partition(":")
        self.original: Backbone = getattr(backbone, "built", backbone)  # of a ``DeferredBackbone``
        with torch.inference_mode(False), torch.no_grad():
            self.backbone: Backbone = copy.deepcopy(self.original)
        self.backbone.forget_copies()
        self.model = model = self.backbone.model
        self.used = self._used(read, size)
        if self.tier == "lora":
            self.trained = self._add_low_rank(int(number))
        elif self.tier == "blocks":
            levels, head = layer_map(model, self.used, coarse=True)
            levels = {name: min(level, head - 1) for name, level in levels.items()}
            blocks = sorted(set(levels.values()))[1:]  # less what comes before the first block
            if int(number) > len(blocks):
                raise UserError(
                    f"tune={tune}: backbone {backbone.name!r} has {len(blocks)} blocks; ask for"
                    " fewer, or tune=all"
                )
            last = blocks[-int(number) :]
            self.trained = {name: self.used[name] for name in levels if levels[name] in last}
        else:
            self.trained = dict(self.used)
        model.requires_grad_(False)
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        if drop_path and self.tier != "lora":
            self._add_drop_path(drop_path)
        if checkpointing:
            for block in blocks_of(model, self.used).values():
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        self.backbone.forget_copies()

    def _used(self, read: Read, size: tuple[int, int]) -> dict[str, nn.Parameter]:
        """The parameters that an output depends on, by a pass over one black image."""
        named = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.is_floating_point()
        }
        device = next(iter(named.values())).device
        with torch.inference_mode(False), torch.enable_grad():
            self.model.requires_grad_(True)
            outputs = read(self.backbone, torch.zeros(1, 3, *size, device=device))
            total = torch.stack([output.float().sum() for output in outputs]).sum()
            gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        pairs = zip(named.items(), gradients, strict=True)
        return {name: parameter for (name, parameter), each in pairs if each is not None}

    def _add_low_rank(self, rank: int) -> dict[str, nn.Parameter]:
        trained: dict[str, nn.Parameter] = {}
        for path, name in attention_weights(self.model, self.used):
            module = self.model.get_submodule(path)
            parametrize.register_parametrization(module, name, LowRank(getattr(module, name), rank))
            added: Any = module.parametrizations[name][0]  # type: ignore[index]
            prefix = f"{path}.parametrizations.{name}.0"
            trained |= {f"{prefix}.{key}": each for key, each in added.named_parameters()}
        if not trained:
            raise UserError(
                f"tune=lora:{rank}: backbone {self.backbone.name!r} has neither attention nor"
                " linear layers; use tune=blocks:N or tune=all"
            )
        return trained

    def _add_drop_path(self, highest: float) -> None:
        owners = [
            [
                (module, name)
                for module in block.modules()
                for name, child in module.named_children()
                if name.startswith("drop_path") and not list(child.children())
            ]
            for block in finest_blocks(self.model, self.used)
        ]
        rates = torch.linspace(0, highest, len(owners)).tolist()
        trained = set(map(id, self.trained.values()))
        for block, rate in zip(owners, rates, strict=True):
            for module, name in block:
                if any(id(parameter) in trained for parameter in module.parameters()):
                    setattr(module, name, DropPath(rate).eval())

    def groups(self, lr: float, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Parameter groups of an optimizer: of ``all`` the rate falls by ``layer_decay`` with each
        block from the head down, as by timm's ``param_groups_layer_decay`` (BEiT's), where the head
        of the task takes the place of the classifier. Norms, biases, tokens, tables of positions
        and matrices of low rank do not decay."""
        layers, head = dict.fromkeys(self.trained, 0), 0
        if self.tier == "all":
            layers, head = layer_map(self.model, self.used)
        no_decay = undecayed(self.model, self.trained)
        groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.trained.items():
            decays = name not in no_decay and self.tier != "lora"
            groups[layers[name], decays].append(parameter)
        return [
            {
                "params": parameters,
                "lr": lr * layer_decay ** (head - layer),
                "weight_decay": weight_decay if decays else 0.0,
            }
            for (layer, decays), parameters in groups.items()
        ]

    def train(self, mode: bool) -> None:
        """Switch drop path on or off."""
        for module in self.model.modules():
            if isinstance(module, DropPath):
                module.training = mode
        self.backbone.forget_copies()  # which have modes of their own

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within the block a sum of low rank is computed once."""
        with parametrize.cached():
            yield

    def refresh(self) -> None:
        """Look up the trained parameters again, after the network has moved to a device."""
        named = dict(self.model.named_parameters())
        self.trained = {name: named[name] for name in self.trained}
        self.used = {name: named.get(name, parameter) for name, parameter in self.used.items()}

    def summary(self) -> str:
        """What trains, for a note."""
        count, every = (
            sum(parameter.numel() for parameter in parameters)
            for parameters in (self.trained.values(), self.model.parameters())
        )
        return f"{count:,} weights of the backbone trained, of {every:,}"

    def merged(self) -> Backbone:
        """A frozen backbone with the tuned weights, and an identity of its own: it is probed,
        cached and saved as any other."""
        weights = {}
        with torch.no_grad():
            for name, _ in self.original.model.named_parameters():
                path, _, own = name.rpartition(".")
                weights[name] = getattr(self.model.get_submodule(path), own)
        merged = with_weights(self.original, weights)
        return merged.to(next(self.model.parameters()).device)


def changed_weights(backbone: Backbone, tuned: Backbone) -> dict[str, Tensor]:
    """Name → weight of ``tuned.model``, of those that ``backbone`` has others of."""
    base: dict[str, Tensor] = backbone.model.state_dict()
    return {
        name: weight
        for name, weight in tuned.model.state_dict().items()
        if not torch.equal(weight, base[name].to(weight.device))
    }


def with_weights(backbone: Backbone, weights: Mapping[str, Tensor]) -> Backbone:
    """A copy of a backbone with some other weights, and an identity of its own.

    Raises:
        UserError: they are no weights of this backbone.
    """
    original: Backbone = getattr(backbone, "built", backbone)  # of a ``DeferredBackbone``
    with torch.inference_mode(False), torch.no_grad():
        changed = copy.deepcopy(original)
        changed.forget_copies()
        state = changed.model.state_dict()
        if {**state, **weights}.keys() != state.keys() or any(
            weights[name].shape != state[name].shape for name in weights
        ):
            raise UserError(
                f"these are no tuned weights of {backbone.name!r}; name a finished run of it"
            )
        changed.model.load_state_dict({**state, **weights})
    source, digest = f"tuned from {original.weights.source}", state_sha256(changed.model_state())
    changed.weights = replace(original.weights, source=source, sha256=digest)
    return changed.freeze()


class LowRank(nn.Module):
    """W → W + up · down, of a matrix W (out, in) or (out, in, 1, 1): ``down`` (rank, in) begins as
    PEFT's, ``up`` (out, rank) with zeros, and the scale α / rank is 1."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape[:2]
        self.down = nn.Parameter(torch.empty(rank, inputs))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.to(weight.device)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def attention_weights(model: nn.Module, used: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(path of a module, name of its weight) of the projections of attention among ``used``: linear
    layers inside a module whose class is an attention, and torch's ``in_proj_weight``. Of a network
    without attention all that is linear at each position: linear layers and 1×1 convolutions."""
    pointwise = [
        (path, "weight")
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) or getattr(module, "kernel_size", ()) == (1, 1)
        if getattr(module, "groups", 1) == 1 and f"{path}.weight" in used
    ]
    paths = {
        (f"{outer}.{inner}" if inner else outer)
        for outer, attention in model.named_modules()
        if type(attention).__name__.endswith("Attention")
        for inner, module in attention.named_modules()
        if isinstance(module, nn.Linear | nn.MultiheadAttention)
    }
    names = [(path, name) for path in sorted(paths) for name in ("weight", "in_proj_weight")]
    return [(path, name) for path, name in names if f"{path}.{name}" in used] or pointwise


def timm_part(model: nn.Module, used: Mapping[str, Any]) -> tuple[str, Any] | None:
    """(prefix of its parameters, the module) of the timm model that ``used`` parameters are of."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if hasattr(module, "group_matcher") and any(name.startswith(prefix) for name in used):
            return prefix, module
    return None


def layer_map(
    model: nn.Module, used: Mapping[str, Any], coarse: bool = False
) -> tuple[dict[str, int], int]:
    """Parameter of ``used`` → its layer, and the layer of the head: 0 before the first block, then
    the number of the block; what follows the last block is in that. Of a timm model as timm says.

    Args:
        coarse: the stages of a network of stages are its blocks.
    """
    if part := timm_part(model, used):
        prefix, module = part
        named = iter(
            [*module.named_parameters(), ("", None)]
        )  # nothing matches the last: it is a head
        matcher = module.group_matcher(coarse=coarse)
        layers: dict[str, int] = group_with_matcher(named, matcher, reverse=True)
        own, head = {f"{prefix}{name}": layer for name, layer in layers.items()}, layers[""]
        return {name: own.get(name, head - 1) for name in used}, head
    blocks = list(blocks_of(model, used))
    layers, layer = {}, 0
    for name in used:
        # a network's own parameters come first, whenever they are used
        layer = next(
            (number for number, path in enumerate(blocks, 1) if name.startswith(f"{path}.")),
            len(blocks) if layer else 0,
        )
        layers[name] = layer
    return layers, len(blocks) + 1


def blocks_of(model: nn.Module, used: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Path → block: the items of the outermost list that has half of the ``used`` weights, or the
    parts of the network."""

    def share(path: str) -> float:
        sizes = [each.numel() for name, each in used.items() if name.startswith(f"{path}.")]
        return sum(sizes) / total

    total = sum(each.numel() for each in used.values())
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1 and share(path) >= 0.5:
            return {f"{path}.{name}": block for name, block in module.named_children()}
    prefix, parent = "", model
    while True:
        children = {f"{prefix}{name}": child for name, child in parent.named_children()}
        weighty = {path: child for path, child in children.items() if share(path)}
        deeper = next((path for path in weighty if share(path) > 0.9), None)
        if deeper is None or not list(weighty[deeper].children()):
            return weighty
        prefix, parent = f"{deeper}.", weighty[deeper]


def finest_blocks(model: nn.Module, used: Mapping[str, Any]) -> list[nn.Module]:
    """The modules that have drop path, in their order."""
    return [
        module
        for module in model.modules()
        if any(name.startswith("drop_path") for name, _ in module.named_children())
    ]


def undecayed(model: nn.Module, names: Mapping[str, Tensor]) -> set[str]:
    """The parameters that weight decay leaves out: vectors, and what the model says; of others than
    timm's all but the weights of layers."""
    vectors = {name for name, parameter in names.items() if parameter.ndim <= 1}
    if part := timm_part(model, names):
        prefix, module = part
        own = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()
        return vectors | {f"{prefix}{name}" for name in own}
    return vectors | {name for name in names if not name.endswith("weight")}
