"""Backbones by name: entries, and families of names (``timm/…``, ``open_clip/…``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliptex_common.errors import UserError, error_summary
from cliptex_common.registry import Registry, instance_of

if TYPE_CHECKING:  # names are listed without torch
    from torch import Tensor

    from backbones.backbone import Backbone, Weights
    from backbones.checkpoint import Checkpoint


@dataclass(frozen=True)
class Request:
    """Arguments of a builder.

    Attributes:
        name: the name without ``random/`` in front of it (``clip``, ``timm/resnet18`` …).
        settings: of the entry (see there); empty for a family; ``architecture`` and
            ``model_config`` where the checkpoint decides.
        checkpoint: the user's own weights, read and checked, or None for the default ones.
        random: initialise from ``seed`` instead of loading anything.
        seed: of the random initialisation; the caller's random state is left alone either way.
        licence: of the entry's default weights.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    random: bool = False
    seed: int = 0
    licence: str = "unknown"

    def weights(
        self, state: dict[str, Tensor], source: str = "", licence: str = "unknown"
    ) -> Weights:
        """Identity of the weights built: the checkpoint's, of a random initialisation, or of the
        library's own from ``source``; ``licence`` is the library's, if the entry names none."""
        if self.checkpoint is not None:
            source, licence = str(self.checkpoint.path), self.checkpoint.licence
        elif self.random or not source:
            source, licence = f"random(seed={self.seed})", "none"
        elif self.licence != "unknown":
            licence = self.licence
        from backbones.backbone import Weights, state_sha256

        return Weights(source, state_sha256(state), licence)


Builder = Callable[[Request], "Backbone"]


@dataclass(frozen=True)
class Entry:
    """One named backbone.

    Attributes:
        name: what users call it.
        about: one line for ``list backbones``.
        licence: of its default weights, SPDX-like, or ``unknown``.
        build: builds it.
        settings: passed to ``build``; for the shipped ones ``architecture`` (``timm/…``,
            ``open_clip/…``), ``pretrained`` (the library's tag) and the paper-size ``layers`` and
            ``size``.
        download: hub repository or URL of the default weights; empty if nothing is downloaded.
        any_architecture: the user's weights decide the architecture, not the name.
    """

    name: str
    about: str
    licence: str
    build: Builder
    settings: Mapping[str, Any] = field(default_factory=dict)
    download: str = ""
    any_architecture: bool = False


@dataclass(frozen=True)
class Family:
    """All names that start with ``prefix`` and a slash.

    Attributes:
        pattern: how they are written, for messages and lists.
        build: builds any of them, or raises ``UserError`` with the nearest names.
        runs_code: of a repository, so that the architecture must be named by the user, not by a
            weights file.
    """

    prefix: str
    pattern: str
    about: str
    build: Builder
    runs_code: bool = False


BACKBONES: Registry[Entry] = Registry(
    "backbone", "backbones", instance_of(Entry), ("backbones.named",)
)
FAMILIES: Registry[Family] = Registry(
    "backbone family", "families", instance_of(Family, attrgetter("prefix"))
)


def register(entry: Entry) -> Entry:
    """Add a named backbone. Raises ``UserError`` if the name is taken or has a slash."""
    if "/" in entry.name:
        raise UserError(
            f"backbone name {entry.name!r} has a slash; slashes are for families such as"
            " timm/resnet18"
        )
    return BACKBONES.register(entry.name, entry)


def names() -> list[str]:
    """All named backbones in alphabetical order, including those of plugins and packages."""
    return sorted(BACKBONES.load_entry_points())


def find(name: str) -> Entry:
    """The entry of ``name``, also for a family's member.

    Raises:
        UserError: no such backbone (suggests the nearest), or its package is broken.
    """
    prefix, _, rest = name.partition("/")
    if rest and (family := _find_family(prefix)):
        return Entry(name, family.about, "unknown", family.build)
    patterns = ", ".join(family.pattern for family in FAMILIES.values())
    return BACKBONES.find(name, also=f"; also {patterns}, random/NAME")


def create(
    name: str,
    *,
    weights: str | Path | None = None,
    seed: int = 0,
    any_architecture: bool = False,
    layers: Sequence[int] = (),
) -> Backbone:
    """Build a backbone, frozen, on the CPU, in float32.

    Args:
        name: a named backbone (see ``names``), ``timm/NAME[.TAG]``,
            ``open_clip/ARCH[/PRETRAINED]``, or ``random/`` in
            front of any of these: the same architecture, initialised from ``seed``, nothing
            downloaded.
        weights: the user's own weights: a file of ``save_checkpoint``, other safetensors, or a
            torch file that loads with ``weights_only=True``.
        seed: of random initialisation.
        any_architecture: build the architecture that ``weights`` remembers, whatever ``name``
            stands for.
        layers: whose feature maps are read, see ``Backbone.at_layers``; its own by default.

    Raises:
        UserError: unknown name; weights that cannot be had without network; a file that is missing,
            damaged, not finite or of another architecture.
    """
    import torch

    from backbones.checkpoint import load_checkpoint

    random = name.startswith("random/")
    own_name = name.removeprefix("random/")
    entry = find(own_name)
    if random and weights is not None:
        raise UserError(
            f"backbone {name!r} is randomly initialised; ask for {own_name!r} to load {weights}"
        )
    checkpoint = load_checkpoint(weights) if weights is not None else None
    build, settings, architecture = entry.build, entry.settings, own_name
    stored = checkpoint.architecture if checkpoint else None
    if checkpoint and stored and (any_architecture or entry.any_architecture):
        architecture = stored
        build = _family_of(checkpoint.path, stored, own_name).build
        settings = {"architecture": stored, "model_config": checkpoint.model_config}
    request = Request(own_name, settings, checkpoint, random, seed, entry.licence)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            backbone = build(request)
        except UserError:
            raise
        except Exception as error:  # each library reports unknown settings in its own way
            if checkpoint is None or stored is None:
                raise
            raise UserError(
                f"{checkpoint.path} remembers a model or layers that cannot be built here"
                f" ({error_summary(error)}); save it again with this version"
            ) from error
    family, slash, _ = architecture.partition("/")
    family_origin = FAMILIES.origin(family) if slash else {}
    backbone.name, backbone.origin = name, {**BACKBONES.origin(own_name), **family_origin}
    backbone.freeze()
    return backbone.at_layers(layers) if layers else backbone


def _find_family(prefix: str) -> Family | None:
    return FAMILIES.get(prefix) or FAMILIES.load_entry_points().get(prefix)


def _family_of(path: Path, architecture: str, requested: str) -> Family:
    family = _find_family(architecture.partition("/")[0])
    if family is None:
        raise UserError(
            f"{path} remembers an architecture of no known family, {architecture!r}; install the"
            " package that brings it"
        )
    if family.runs_code and architecture != requested:
        raise UserError(
            f"{path} is of {architecture!r}, whose code would run; if you trust it, name it:"
            f" --backbone {architecture} --weights {path}"
        )
    return family
