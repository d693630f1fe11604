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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from timm.layers import DropPath
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from backbones.backbone import Backbone, state_sha256
from cliptex_common.device import isolated_rng
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
        size: as given.

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
        for module in model.modules():  # an architecture's own drop path is not what is asked for
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
        self._read, self.size = read, size
        self.used = self._used()
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

    def _used(self) -> dict[str, nn.Parameter]:
        """The parameters that an output depends on, by a pass over one black image."""
        named = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.is_floating_point()
        }
        device = next(iter(named.values())).device
        with torch.inference_mode(False), torch.enable_grad():
            self.model.requires_grad_(True)
            outputs = self._read(self.backbone, torch.zeros(1, 3, *self.size, device=device))
            gradients = torch.autograd.grad(
                total_of(outputs), list(named.values()), allow_unused=True
            )
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

    @cached_property
    def cut(self) -> Cut:
        """Where what trains begins."""
        return Cut(self, self._read, self.size)

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


class _Recorded(Exception):
    """All that is recorded was computed: the rest of the pass is not needed."""


class Cut:
    """The part of a tuned network that does not train, as the outputs of modules: the outermost
    ones whose outputs depend on images, and on nothing that trains. Those that the rest of the
    network reads are ``record``-ed, image by image; while ``replaying`` gives them back, none of
    these modules is computed.

    Args:
        tuning: of the tier ``blocks``.
        read, size: as of ``Tuning``.

    Attributes:
        names: of the modules whose outputs are recorded.

    Raises:
        UserError: the rest of the network reads images in another way, too.
    """

    def __init__(self, tuning: Tuning, read: Read, size: tuple[int, int]) -> None:
        backbone, trained = tuning.backbone, [*tuning.trained.values()]
        self._handle: Callable[[str, Callable[[], Any]], Any] = _compute
        self._read, self._device = partial(read, backbone), trained[0].device
        images = torch.zeros(2, 3, *size, device=self._device)
        ids = set(map(id, trained))
        for path, module in tuning.model.named_modules():
            if path and ids.isdisjoint(map(id, module.parameters())):
                module.forward = partial(self._call, path, module.forward)
        backbone.forget_copies()
        with torch.inference_mode(False), torch.enable_grad():
            tuning.model.requires_grad_(False)
            frozen = self._tracked(images.clone().requires_grad_())
            for parameter in trained:
                parameter.requires_grad_(True)
            for path in self._tracked(images):
                frozen.pop(path, None)
            self._replaced = {
                path for path in frozen if not any(path.startswith(f"{outer}.") for outer in frozen)
            }
            self._examples: dict[tuple[int, ...], dict[str, Tensor]] = {}
            leaves: dict[str, Tensor] = {}

            def detached(path: str, compute: Callable[[], Any]) -> Any:
                if path not in self._replaced:
                    return compute()
                leaves[path] = compute().detach().requires_grad_()
                return leaves[path].clone()  # which may be changed in place

            images = images.clone().requires_grad_()
            total = total_of(self._pass(detached, images))
            gradients = torch.autograd.grad(total, [images, *leaves.values()], allow_unused=True)
        if gradients[0] is not None:
            raise UserError(
                f"tune={tuning.tier}: backbone {backbone.name!r} reads images outside of its"
                " modules; set cache=none"
            )
        used = zip(leaves, gradients[1:], strict=True)
        self.names: list[str] = [path for path, gradient in used if gradient is not None]

    def __deepcopy__(self, memo: Any) -> Cut:
        return self  # of copies of the network for other sizes, too

    def examples(self, size: Sequence[int]) -> dict[str, Tensor]:
        """Each module that is not computed → its output of two images of ``size``, without values.
        The first call for a size computes it, which changes no random number."""
        size = tuple(size)
        if size not in self._examples:
            outputs: dict[str, Tensor] = {}

            def observe(path: str, compute: Callable[[], Any]) -> Any:
                output = compute()
                if path in self._replaced:
                    outputs[path] = torch.empty_like(output, device="meta")
                return output

            # weights that are cast here have no gradient, and must not be used where one is asked
            exact = torch.autocast(self._device.type, enabled=False, cache_enabled=False)
            with torch.no_grad(), isolated_rng(), exact:
                self._pass(observe, torch.zeros(2, 3, *size, device=self._device))
            self._examples[size] = outputs
        return self._examples[size]

    def record(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) → the outputs of ``names``, each (N, …)."""
        outputs: dict[str, Tensor] = {}

        def keep(path: str, compute: Callable[[], Any]) -> Any:
            output = compute()
            if path in self.names:
                outputs[path] = output.clone()
                if len(outputs) == len(self.names):
                    raise _Recorded
            return output

        with suppress(_Recorded):
            self._pass(keep, images)
        return [outputs[path] for path in self.names]

    @contextmanager
    def replaying(self, recorded: Sequence[Tensor], size: Sequence[int]) -> Iterator[Tensor]:
        """Within the block ``recorded``, in any precision, take the place of what images of
        ``size`` (height, width) give. Yields black images (N, 3, H, W) in place of those."""
        outputs = dict(zip(self.names, recorded, strict=True))
        examples = self.examples(size)

        def give(path: str, compute: Callable[[], Any]) -> Any:
            if path not in examples:
                return compute()
            example = examples[path]
            if path in outputs:
                return outputs[path].to(example.dtype, memory_format=_format_of(example))
            shape = len(recorded[0]), *example.shape[1:]
            return recorded[0].new_empty(shape, dtype=example.dtype)

        black = torch.zeros(1, 3, *size, device=recorded[0].device)
        self._handle = give
        try:
            yield black.expand(len(recorded[0]), -1, -1, -1)
        finally:
            self._handle = _compute

    def _call(self, path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._handle(path, partial(forward, *args, **kwargs))

    def _pass(self, handle: Callable[[str, Callable[[], Any]], Any], images: Tensor) -> Any:
        self._handle = handle
        try:
            return self._read(images)
        finally:
            self._handle = _compute

    def _tracked(self, images: Tensor) -> dict[str, Tensor]:
        """Module → output, of those that compute one batch that has a gradient."""
        outputs: dict[str, list[Any]] = defaultdict(list)

        def observe(path: str, compute: Callable[[], Any]) -> Any:
            output = compute()
            outputs[path].append(output)
            return output

        self._pass(observe, images)
        return {
            path: output[0]
            for path, output in outputs.items()
            if len(output) == 1 and isinstance(output[0], Tensor) and output[0].requires_grad
            if output[0].shape[:1] == images.shape[:1]
        }


def _format_of(output: Tensor) -> torch.memory_format:
    is_last = output.ndim == 4 and not output.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format


def _compute(path: str, compute: Callable[[], Any]) -> Any:
    return compute()


def total_of(outputs: Sequence[Tensor]) -> Tensor:
    """One number that depends on all outputs."""
    return torch.stack([output.float().sum() for output in outputs]).sum()


class Average:
    """The exponential moving average of weights that train: after the first step these weights
    themselves, then decay · average + (1 − decay) · weights, as of mmengine's ``EMAHook``.

    Args:
        parameters: of a module, on its device.
        decay: 0 for no average.

    Attributes:
        values: of each parameter; empty before the first step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = [each for each in parameters if each.requires_grad] if decay else []
        self.decay, self.values = decay, list[Tensor]()

    @torch.no_grad()
    def update(self) -> None:
        """After a step."""
        if not self.values:
            self.values = [parameter.clone() for parameter in self.parameters]
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, 1 - self.decay)

    def load(self, values: Sequence[Tensor]) -> None:
        """``values`` of a stored state, on any device."""
        pairs = zip(values, self.parameters, strict=False)
        self.values = [value.to(parameter.device) for value, parameter in pairs]

    @torch.no_grad()
    def apply(self) -> None:
        """Give the parameters their average, where there is one, at the end of the training."""
        for parameter, value in zip(self.parameters, self.values, strict=False):
            parameter.copy_(value)
        self.values = []


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
    layers inside a module whose class is an attention (but for an ``mlp`` in it, which computes the
    bias of positions), and torch's ``in_proj_weight``. Of a network without attention all that is
    linear at each position: linear layers and 1×1 convolutions."""
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
        if not any(step.endswith("mlp") for step in inner.split("."))
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
