"""A network of your own as a backbone. Try it:

python -m benchmark run --backbone my-net.py:MyNet --suite smoke --only
"""

from torch import Tensor, nn

from backbones import DataConfig


class MyNet(nn.Module):  # stands for your network: import yours instead
    # size, mean and deviation of its images; without it 224 × 224 and those of ImageNet
    data = DataConfig((64, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def __init__(self, width: int = 32, depth: int = 4) -> None:  # my-net.py:MyNet(width=64)
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, stride=8)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for block in self.blocks:
            maps.append(maps[-1] + block(maps[-1]).relu())
        return maps[1:]  # shallow to deep, (N, C, H / stride, W / stride)

    def encode_image(self, images: Tensor) -> Tensor:  # without it the mean of the last map
        return self(images)[-1].mean(dim=(2, 3))
