"""``nll-angmf`` against its authors' network. ``gen-efficientnet-pytorch``, whose encoder it loads
by ``torch.hub``, must lie beside the checkout."""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from backbones.cliptex.experts.published import NllAngMF
from tests.protocols.experts import image, network_input, random_state

SOURCE, COMMIT = "baegwangbin/surface_normal_uncertainty", "fe2b9f1"
SIZE = 64, 64  # of images; theirs are squeezed to 480 × 640
DIFFERS = {"size": "theirs are squeezed to 480 × 640; here the aspect is kept"}
TOLERANCE = {"normal": 1e-4, "kappa": 1e-4}
NORMS = ("BN", "GN")


def source(checkout: Path) -> dict[str, dict[str, Any]]:
    from data.dataloader_custom import CustomLoadPreprocess
    from models.NNET import NNET
    from PIL import Image

    sys.path.append(str(checkout.parent / "gen-efficientnet-pytorch"))
    geffnet = import_module("geffnet")

    def load(repository: str, name: str, pretrained: bool) -> nn.Module:
        return getattr(geffnet, name)(pretrained=False)

    fields = {}
    for norm in NORMS:
        options = {"architecture": norm, "sampling_ratio": 0.4, "importance_ratio": 0.7}
        with patch("torch.hub.load", load):
            network = NNET(SimpleNamespace(**options))
        network.load_state_dict(random_state(network.state_dict()))
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            Image.fromarray(_pixels(*SIZE)).save(f"{folder}/image.png")
            height, width = SIZE
            arguments = SimpleNamespace(input_height=height, input_width=width)
            (sample,) = CustomLoadPreprocess(arguments, folder)
            output = network.eval()(sample["img"][None])[0][-1][0]
            Image.fromarray(_pixels(60, 120)).save(f"{folder}/image.png")
            arguments = SimpleNamespace(input_height=480, input_width=640)
            (sample,) = CustomLoadPreprocess(arguments, folder)
        normal, kappa = output[:3].numpy(), output[3].numpy()
        fields[norm] = _fields(normal, kappa, tuple(sample["img"].shape[1:]))
    return fields


def suite() -> dict[str, dict[str, Any]]:
    fields = {}
    for norm in NORMS:
        expert = NllAngMF(norm)
        expert.net.load_state_dict(random_state(expert.net.state_dict()), assign=True)
        expert.freeze()
        expert.settings = SimpleNamespace(size=min(SIZE))
        output = expert.predict(image(*SIZE))
        expert.settings = SimpleNamespace(size=480)
        pixels = network_input(expert.net, partial(expert.predict, image(60, 120)))
        normal = output["normal"][0] * np.array([-1, 1, 1])[:, None, None]  # their x points left
        fields[norm] = _fields(normal, output["confidence"][0], pixels.shape[2:])
    return fields


def _pixels(height: int, width: int) -> np.ndarray:
    return image(height, width)[0].permute(1, 2, 0).numpy()


def _fields(normal: np.ndarray, kappa: np.ndarray, size: tuple[int, ...]) -> dict[str, Any]:
    return {"normal": normal[:, ::7, ::7], "kappa": kappa[::7, ::7], "size": size}
