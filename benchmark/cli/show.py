"""``show``: what the features of backbones look like, on a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from benchmark.cli.parser import ConfigOptions
from benchmark.planning.options import BackboneNames, PluginOptions
from cliptex_common.errors import UserError
from cliptex_common.settings import Folder, options_dataclass

MAPS = 4_000_000  # bytes of feature maps in a page


@options_dataclass
class ShowFeatures(ConfigOptions, PluginOptions):
    """Draw the features of backbones: principal components, and the likeness of parts of images.

    examples:
      python -m benchmark show --backbone dinov2-b14,clip --images photos/ --out features/
      python -m benchmark show --backbone cliptex --weights mine.safetensors --images photos/
        --size 448
    """

    backbones: BackboneNames
    """backbones; see `list backbones`"""
    images: Folder
    """folder of images; of many, evenly spaced ones are drawn"""
    weights: Path | None = None
    """checkpoint of the backbone"""
    layer: PositiveInt | None = None
    """number of the layer that is drawn (default: the last map)"""
    size: Annotated[int, Field(ge=1, le=8192)] | None = None
    """side in pixels of the square that the backbones see (default: their own size)"""
    device: str = "auto"
    """auto, cpu, or an accelerator as torch names it, perhaps with its number"""
    out: Folder = Path("features")
    """output folder"""

    def main(self) -> int:
        """Write the page; print its path."""
        import backbones
        from benchmark.execution.device import choose_device
        from benchmark.execution.progress import console
        from cliptex_common.dense_maps.pictures import spread_indices
        from cliptex_common.device import float32_products
        from probes.base import EncodeContext
        from probes.features.members import IMAGES as SUFFIXES
        from probes.image_level.feature_pictures import IMAGES, feature_pictures
        from reports.parts.features import make_feature_pictures
        from reports.parts.summary import Summary
        from reports.render.export import write
        from reports.report import Report

        if self.weights and len(self.backbones) != 1:
            raise UserError(f"--weights applies to one backbone, not to {len(self.backbones)}")
        files = sorted(
            path for path in self.images.rglob("*") if path.suffix.lower()[1:] in SUFFIXES
        )
        if not files:
            raise UserError(f"--images {self.images}: no {', '.join(SUFFIXES)} file")
        paths = [files[index] for index in spread_indices(len(files), IMAGES)]
        context = EncodeContext(choose_device(self.device), num_workers=0)
        size = (self.size, self.size) if self.size else None
        layers = [self.layer] if self.layer else []
        features = {}
        with float32_products(tf32=False):
            for name in self.backbones:
                backbone = backbones.create(name, weights=self.weights, layers=layers).to(
                    context.device
                )
                features[name] = feature_pictures(context, backbone, paths, self.images, size)
        about = f"{len(paths)} of {len(files)} images of {self.images}"
        report = Report(
            "Features of backbones",
            ", ".join(self.backbones),
            Summary("open", f"{', '.join(self.backbones)} on {about}", []),
            store=str(self.images),
            features=make_feature_pictures(about, features, MAPS),
        )
        console.print(f"page: {write(report, self.out)[0]}")
        return 0


COMMAND = ShowFeatures
