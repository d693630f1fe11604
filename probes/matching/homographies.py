"""``homography``, without training: a patch of an image matches the patch of its warped copy whose
features are nearest by cosine; how far that is from where the warp takes it.

The warp is a random homography, so the truth is exact for any image and needs no annotation. It
moves the corners of a square, which follows from the image's content alone. Patches that leave the
square are not matched. As in VisBench's correspondence limits are in pixels, since patches differ
between backbones, and the ceiling of the grid stands beside each score: that of the patch nearest
to the truth. Unlike there, the mean is over images, and no match is left out by its ratio to the
second nearest. The area below the curve of recall is exact: the mean of ``max(0, 1 - error /
limit)``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import normalize

from cliptex_common.device import upload
from cliptex_common.errors import UserError, first_line
from cliptex_common.files import derive_seed
from cliptex_common.images import IMAGE_ERRORS, open_image, spread_indices, to_rgb
from cliptex_common.progress import Silent
from probes.base import Context, TaskResult
from probes.features.files import content_hash
from probes.image_level.encode import square_side
from probes.matching.probe import PIXELS, warped_images
from probes.matching.views import (
    PairMatches,
    PosedImage,
    PosedViews,
    clearest_matches,
    draw_pairs,
    project,
)
from probes.pictures import GALLERY_IMAGES

SQUARE = 224  # side of that in whose pixels errors are


def run(context: Context) -> TaskResult:
    """See ``probes.base.FeatureProbe``."""
    samples, settings = context.data.samples["val"], context.settings
    views = WarpedViews(context)
    context.progress.start("matching warped images", len(samples))
    encoded = views.items([range(2 * len(samples))], progress=Silent())
    shown, pictured = set(spread_indices(len(samples), GALLERY_IMAGES)), {}
    rows, grid = [], torch.Size()
    for number, pair in enumerate(zip(encoded, encoded, strict=True)):
        maps = [upload(feature_map, context.device) for _, (feature_map,), _ in pair]
        grid = maps[0].shape[1:]
        if grid.numel() < 2:
            raise UserError(f"size={views.side} is one patch; set a larger size")
        cells = centres(grid, views.side)
        images = [replace(about["view"], points=cells.T.unflatten(1, grid)) for *_, about in pair]
        matches, nearest = match_warped(maps, cells, images[1].camera, settings.matches)
        rows.append(scores(matches.errors["px"]))
        rows[-1] |= {f"ceiling_{name}": value for name, value in scores(nearest).items()}
        if number in shown:
            pictured[samples[number].image] = (images[0], images[1]), matches
        context.progress.advance()
    names = tuple(sample.image for sample in samples)
    per_image = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    per_image["image"] = np.array(names)
    metrics = warped_images(names, per_image).values()
    ceilings = ", ".join(f"{metrics[f'ceiling_recall_{n}px']:.1f} within {n} px" for n in PIXELS)
    note = f"ceiling of a grid of {grid[0]} × {grid[1]} patches: recall {ceilings}"
    preview = draw_pairs(context.work_dir / "preview.png", pictured, "warped-images")
    return TaskResult(metrics, per_image, preview=preview, notes=[note])


class WarpedViews(PosedViews):
    """The feature maps of each image and its warped copy, one after the other; their ``camera``
    takes points of the image to pixels of the view."""

    def __init__(self, context: Context) -> None:
        self.side = square_side(context.settings, context.backbone)
        super().__init__(context, [each for each in context.data.samples["val"] for _ in range(2)])

    def load(self, item: int) -> PosedImage:
        path = self.context.data.root / self.samples[item].image
        homography = torch.eye(3, dtype=torch.float64)
        try:
            with open_image(path) as image:
                square = ImageOps.fit(
                    to_rgb(image), (self.side, self.side), Image.Resampling.BICUBIC
                )
            if item % 2:
                homography = homography_of(path, self.side, self.context.settings.warp)
                square = warp(square, homography)
        except IMAGE_ERRORS as error:
            raise UserError(f"cannot read {path} ({first_line(error)})") from error
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)
        return PosedImage(pixels, torch.empty(3, 0, 0), homography)


def homography_of(path: Path, side: int, share: float) -> Tensor:
    """``random_homography`` of an image, by its content."""
    return random_homography(side, share, derive_seed("homography", content_hash(path)))


def random_homography(side: int, share: float, seed: int) -> Tensor:
    """(3, 3) float64 of a square of ``side`` pixels, each of whose corners moves by at most
    ``share`` of it, across and down."""
    corners = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    offsets = 2 * torch.rand(4, 2, generator=generator, dtype=torch.float64) - 1
    return homography_between(side * corners, side * (corners + share * offsets))


def homography_between(source: Tensor, target: Tensor) -> Tensor:
    """(3, 3), which takes four points (4, 2) to four others; its last entry is 1."""
    ones, zeros = torch.ones_like(source[:, :1]), torch.zeros_like(source).repeat(1, 2)[:, :3]
    points = torch.cat([source, ones], dim=1)
    rows = torch.cat([torch.cat([points, zeros], dim=1), torch.cat([zeros, points], dim=1)])
    values = target.T.flatten()
    rows = torch.cat([rows, -values[:, None] * source.repeat(2, 1)], dim=1)
    return torch.cat([torch.linalg.solve(rows, values), ones[0]]).reshape(3, 3)


def warp(image: Image.Image, homography: Tensor) -> Image.Image:
    """An image whose points went where ``homography`` takes them, bicubic; black where none did."""
    inverse = homography.inverse()
    return image.transform(
        image.size,
        Image.Transform.PERSPECTIVE,
        (inverse / inverse[2, 2]).flatten()[:8].tolist(),
        Image.Resampling.BICUBIC,
    )


def centres(grid: torch.Size, side: int) -> Tensor:
    """(N, 3) float64, x, y and 1 of the middle of each patch in a square of ``side`` pixels."""
    rows, columns = (
        (torch.arange(count, dtype=torch.float64) + 0.5) * side / count for count in grid
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=2).flatten(0, 1)


def match_warped(
    maps: list[Tensor], cells: Tensor, homography: Tensor, count: int
) -> tuple[PairMatches, Tensor]:
    """The matches of the patches that stay in the square, at most ``count``, and the errors (N,) of
    the patches nearest to the truth.

    Args:
        maps: of the image and its warped copy, (C, h, w).
        cells: see ``centres``.
    """
    first, second = (normalize(each.flatten(1).T, dim=1) for each in maps)
    side = 2 * cells[:, :2].mean()
    moved = project(cells, homography)
    inside = ((moved >= 0) & (moved <= side)).all(dim=1).nonzero()[:, 0]
    source, target = (
        each.cpu() for each in clearest_matches(first[inside.to(first.device)], second, count)
    )
    source = inside[source]
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(moved[source], cells[:, :2], compute_mode=exact) * SQUARE / side
    errors = distances.gather(1, target[:, None])[:, 0]
    points = torch.cat([moved[source], cells[source, 2:]], dim=1)
    return PairMatches({"px": errors}, (source, target), points), distances.amin(dim=1)


def scores(errors: Tensor) -> dict[str, float]:
    """``recall_…`` and ``auc_…`` of errors (N,) in pixels, 0 to 1; NaN without any."""
    recalls = {f"recall_{limit}px": (errors <= limit).double().mean().item() for limit in PIXELS}
    areas = {f"auc_{limit}px": (1 - errors / limit).clamp(min=0).mean().item() for limit in PIXELS}
    return recalls | areas
