"""A network of your own as a backbone. Try it:

python -m benchmark run --plugin my-net.py --backbone random/my-net --suite smoke --only
"""

from torch import Tensor, nn

from backbones import Backbone, DataConfig, Entry, UserError, register
from backbones.checkpoint import check_architecture, fit_state
from backbones.registry import Request


class Net(nn.Sequential):  # stands for your network: import yours instead
    def __init__(self, width: int, depth: int) -> None:
        blocks = [nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)]
        super().__init__(nn.Conv2d(3, width, 8, stride=8), *blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self[0](images)]
        for block in list(self)[1:]:
            maps.append(maps[-1] + block(maps[-1]).relu())
        return maps[1:]


class MyNet(Backbone):
    libraries = ("torch",)  # import names; their versions are part of its identity

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        # the family, and what builds the same network again: both are stored with weights
        self.architecture, self.model_config = "my/my-net", {"width": width, "depth": depth}
        self.model = Net(width, depth)  # the suite freezes it
        # of maps that dense probes read, shallow to deep: channels, stride in pixels, layer
        self.channels, self.strides, layers = (width,) * 4, (8,) * 4, range(depth - 4, depth)
        self.divisor, self.embed_dim, self.depth = 8, width, depth  # images: padded to the divisor
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as it was trained
        self.data = DataConfig((64, 64), mean, std, layers=tuple(layers))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.model(images)  # patches only, as (N, C, H / stride, W / stride)
        return tuple(maps[layer] for layer in self.data.layers)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model(images)[-1].mean(dim=(2, 3))  # or the class token, if it was trained


def build(request: Request) -> Backbone:
    weights = request.checkpoint  # --weights FILE
    backbone = MyNet(**(weights.model_config if weights else request.settings))
    if weights:
        check_architecture(weights, backbone.architecture)
        fit_state(backbone.model, weights, backbone.architecture)
    elif not request.random:  # or load your own: backbones.adapters.common downloads files
        raise UserError("my-net has no weights of its own; pass --weights FILE")
    backbone.weights = request.weights(backbone.model_state())
    return backbone


register(Entry("my-net", "one line for `list backbones`", "licence of its weights", build))
