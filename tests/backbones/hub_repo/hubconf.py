"""Entry points: ``dino_like`` with DINOv2's ``get_intermediate_layers``, ``capi_like`` with CAPI's
call, ``video_like`` as V-JEPA 2: an encoder with a predictor."""

import torch
from torch import nn


class Vit(nn.Module):
    """A ViT without positions: a class token and one register before the patches."""

    patch_size = 14

    def __init__(self, width=32, depth=4):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, self.patch_size, self.patch_size)
        self.first = nn.Parameter(torch.randn(1, 2, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, norm_first=True, batch_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def layers(self, images):
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(images), -1, -1), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
            yield tokens


class DinoLike(Vit):
    def get_intermediate_layers(self, x, n=1, reshape=False, return_class_token=False, norm=True):
        layers = list(self.layers(x))
        layers = layers[-n:] if isinstance(n, int) else [layers[i] for i in n]
        layers = [self.norm(each) if norm else each for each in layers]
        patches = [each[:, 2:] for each in layers]
        if reshape:
            grid = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
            patches = [each.transpose(1, 2).unflatten(2, grid) for each in patches]
        tokens = [each[:, 0] for each in layers]
        return tuple(zip(patches, tokens, strict=True)) if return_class_token else tuple(patches)


class Encoder(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def forward(self, x, return_layers, coords=None):
        outputs = {}
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number + 1 in return_layers:
                outputs[number + 1] = x
        return outputs


class CapiLike(Vit):
    num_prefix_tokens = 2

    def __init__(self):
        super().__init__()
        self.encoder, self.enc_norm = Encoder(self.blocks), self.norm
        del self.blocks, self.norm

    def prepare_tokens_and_drop(self, x, visible_indices):
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(x), -1, -1), patches], dim=1), None, None

    def forward(self, x):
        depth = len(self.encoder.blocks)
        last = self.enc_norm(self.encoder(self.prepare_tokens_and_drop(x, None)[0], {depth})[depth])
        grid = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        return last[:, 2:].mean(dim=1), last[:, :2], last[:, 2:].unflatten(1, grid)


class VideoLike(Vit):
    tubelet_size = 2
    img_height = img_width = 56
    out_layers = None

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv3d(3, 32, (2, 14, 14), (2, 14, 14))
        del self.first

    def forward(self, x):
        x, outputs = self.patch_embed(x).flatten(2).transpose(1, 2), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if self.out_layers is not None and number in self.out_layers:
                outputs.append(self.norm(x))
        return self.norm(x) if self.out_layers is None else outputs


def dino_like(pretrained=True, weights="IN21K"):
    return DinoLike()


def capi_like(pretrained=True):
    return CapiLike()


def video_like(pretrained=True):
    return VideoLike(), nn.Linear(32, 32)


def no_module(pretrained=True):
    return "a processor"


def another_interface(pretrained=True):
    return nn.Conv2d(3, 8, 8, 8)


def always_loaded():
    return CapiLike()
