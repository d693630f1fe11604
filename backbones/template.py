"""Copy this file to bring a network of your own; its comments are the decisions. First ask whether
a name will do: ``timm/NAME``, ``open_clip/ARCH/PRETRAINED``, ``hf/REPO`` and
``hub/OWNER/REPO:ENTRY`` need no code, nor do ``--weights FILE`` of such an architecture.

Then: a package of your own with the copy in it, an entry point ``cliptex_benchmark.backbones``
(``my-net = package:ENTRY``, see ``backbones.registry``), and
``tests/backbones/test_conformance.py``, which this file passes as it is.
"""

from __future__ import annotations

from torch import Tensor, nn

from backbones.base import Backbone, DataConfig
from backbones.checkpoint import check_architecture, fit_state
from backbones.registry import Entry, Request
from common.errors import UserError


class Net(nn.Module):
    """Stands for your network: import yours instead. A patch embedding, and blocks that mix each
    patch with its neighbours."""

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 8, stride=8)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.embed(images)]
        for block in self.blocks:
            maps.append(maps[-1] + block(maps[-1]).relu())
        return maps[1:]


class MyBackbone(Backbone):
    """Your network as the suite sees it. ``backbones.create`` freezes it and keeps it in eval mode:
    do neither here."""

    # Decision 1: which libraries can change its numbers when they change. Import names; their
    # versions join the identity.
    libraries = ("torch",)
    # Raise this whenever you edit the adapter so that the same weights give other numbers: old
    # cells then no longer count.
    version = 1

    def __init__(self, name: str, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.name = name
        # Decision 2: what says that two weights files are of one architecture. ``architecture``
        # names the family and all that has no setting; ``model_config`` has the settings, and must
        # be enough to build the same network from.
        self.architecture = "my/net"
        self.model_config = {"width": width, "depth": depth}
        self.model = Net(width, depth)
        # Decision 3: which maps dense probes read, shallow to deep – of a plain ViT four evenly
        # spaced blocks, of a network of stages the last map of each stride 4 to 32. One channel
        # count and one stride (in pixels) for each.
        layers = tuple((i + 1) * depth // 4 - 1 for i in range(4))
        self.channels, self.strides = (width,) * 4, (8,) * 4
        # Decision 4: what heights and widths must be multiples of. Whoever calls pads to it: never
        # resize or pad in here.
        self.divisor = 8
        # Decision 5: how images are prepared: exactly as in training. A wrong mean costs points and
        # raises no error. Probes feed other sizes than ``size``: interpolate position tables in
        # here, or say by a ``UserError`` which size it takes.
        self.data = DataConfig(
            (64, 64), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), layers=layers
        )
        self.embed_dim = width
        # With a text tower: has_text = True, and ``encode_text`` below in the space of
        # ``encode_image``.

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        # Decision 6: before or after the final norm? A plain ViT's maps pass its own final norm, as
        # DINOv2's authors read them. No class token, no registers: patches alone, as (N, C, H /
        # stride, W / stride). No image sees the others of its batch.
        maps = self.model(images)
        return tuple(maps[layer] for layer in self.data.layers)

    def encode_image(self, images: Tensor) -> Tensor:
        # Decision 7: what stands for the whole image: the class token where it was trained, an
        # attention pool, or the mean.
        return self.model(images)[-1].mean(dim=(2, 3))

    # ``encode_features`` only where ``encode_image`` is a projection (CLIP): what is projected.
    # ``encode_tokens`` only of a ViT with a class token: (class token, patches) after each of the
    # last blocks. The defaults are right for everything else.


def build(request: Request) -> Backbone:
    """What ``backbones.create`` calls; torch is seeded, and its random state is put back
    afterwards."""
    checkpoint = request.checkpoint
    settings = dict(checkpoint.model_config if checkpoint else request.settings)
    backbone = MyBackbone(request.name, **settings)
    # ``--weights FILE``: read already, without unpickling, and free of NaN
    if checkpoint is not None:
        check_architecture(checkpoint, backbone.architecture)
        fit_state(backbone.model, checkpoint, backbone.architecture)
    elif not request.random:
        # Decision 8: where its own weights come from: ``hub_file`` of backbones.adapters.hub for
        # the Hugging Face hub (its errors are lines for users). Say the licence of the weights,
        # which need not be that of the code.
        raise UserError(
            f"{request.name!r} has no weights of its own; pass --weights FILE, or ask for"
            f" random/{request.name}"
        )
    # of its own weights also their source and licence
    backbone.weights = request.weights(backbone.model_state())
    return backbone


ENTRY = Entry("my-net", "what `list backbones` says of it, one line", "none", build)
