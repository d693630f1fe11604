"""``dpt``: relative inverse depth by a published model (Ranftl et al., TPAMI 2022, and later)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from backbones.cliptex.experts.base import Expert, FitSettings, resize
from cliptex_common.errors import UserError, first_line

SUGGESTED = "Intel/dpt-large or depth-anything/Depth-Anything-V2-Small-hf"


class DPT(Expert):
    """A depth model of transformers that predicts relative inverse depth.

    Its own processor resizes and normalises the images.
    """

    name = "dpt"
    task = "depth"

    def __init__(self, net: nn.Module, processor: Any) -> None:
        super().__init__(FitSettings())
        self.net: Any = net
        self.processor = processor

    def identity(self) -> dict[str, Any]:
        parts = {"model": self.net.config.to_dict(), "processor": self.processor.to_dict()}
        described = {
            part: {k: v for k, v in config.items() if not k.startswith(("_", "transformers"))}
            for part, config in parts.items()
        }
        return {**super().identity(), "settings": {}, **described}

    def trunk(self) -> Iterable[nn.Module]:
        return [part for name, part in self.net.named_children() if name != "head"]

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, np.ndarray]:
        # on the CPU: other devices round bytes that are resized in another way
        pixels = self.processor(images=images.cpu(), return_tensors="pt")["pixel_values"]
        depth = self.net(pixel_values=pixels.to(self.device)).predicted_depth
        return {"depth": resize(depth[:, None].float(), images.shape[-2:])[:, 0].cpu().numpy()}

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Self:
        """Published weights.

        Args:
            source: a hub name (``Intel/dpt-large``, ``depth-anything/Depth-Anything-V2-Small-hf``),
                or a folder as transformers saves it.
        Raises:
            UserError: no such model, missing weights, or not relative inverse depth.
        """
        if Path(source).is_file():
            raise UserError(
                f"{source} is a file, and MiDaS's own checkpoints are not read; use the same"
                f" weights from the hub, such as dpt={SUGGESTED}"
            )
        net, processor = _from_transformers(source)
        _check_convention(source, net.config)
        expert = cls(net, processor)
        expert.source = source
        return expert.freeze(device)


def _from_transformers(source: str) -> tuple[Any, Any]:
    """The model and its image processor; a torch file is not unpickled."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    options = {"local_files_only": Path(source).exists()}
    try:
        processor = AutoImageProcessor.from_pretrained(source, **options)
        net, report = AutoModelForDepthEstimation.from_pretrained(
            source, weights_only=True, output_loading_info=True, **options
        )
    except Exception as error:  # transformers and the hub raise nearly anything
        raise UserError(
            f"no depth model at {source!r} ({first_line(error)}); give a folder with config.json,"
            " preprocessor_config.json and model.safetensors, or be online and use a hub name such"
            f" as {SUGGESTED}"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    if report["missing_keys"]:
        raise UserError(f"{source} lacks weights of its model, first {min(report['missing_keys'])}")
    return net, processor


def _check_convention(source: str, config: Any) -> None:
    """Refuse models that are not known to predict relative inverse depth: labels would be inverted.

    Depth Anything's config says it (``depth_estimation_type``). DPT's has no such field: those of
    MiDaS' authors (``Intel/dpt-…``) are relative, and a DPT head on DINOv2 (``add_projection``)
    predicts metres.
    """
    default = "relative" if source.startswith("Intel/dpt-") else "unknown"
    depth_type = getattr(config, "depth_estimation_type", default)
    if getattr(config, "add_projection", False):
        depth_type = "metric"
    if config.model_type not in ("dpt", "depth_anything"):
        raise UserError(f"{source} is of type {config.model_type}, not DPT; use {SUGGESTED}")
    if depth_type != "relative":
        raise UserError(
            f"{source} is not known to predict relative inverse depth, as labels need it"
            f" (depth_estimation_type: {depth_type}); use {SUGGESTED}, or, if it does, write"
            ' "depth_estimation_type": "relative" into the config.json of a copy'
        )
