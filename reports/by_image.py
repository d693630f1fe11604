"""Two backbones image by image: where they differ, and what goes with the difference.

Images are joined as in paired intervals: both cells are of one task under one protocol, whose hash
has the fingerprint of the data in it, so that equal names are equal images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from cliptex_common.errors import UserError
from cliptex_common.images import draw_grid
from reports.comparison import find_problems, load_scores
from reports.per_image import ImageScores, why_unscored
from reports.pictures import Pack, read_pack
from reports.records import Cell, TrackingError
from reports.selection import Selection, TaskColumn
from reports.statistics import LEVEL, MIN_IMAGES, fisher_z, judge_jointly
from reports.store import Store


class ImageDifferences(pd.DataFrame):
    """A row for each ``image`` (or image and ``class``): the scores of two backbones, their
    ``difference`` and its ``rank``, 1 where the first is furthest behind the second.

    Attributes:
        scores: of the first backbone.
        packs: the pictures of both; empty where one has none.
    """

    _metadata: ClassVar[list[str]] = ["scores", "packs"]
    scores: ImageScores
    packs: Mapping[str, Pack]

    @property
    def _constructor(self) -> type[ImageDifferences]:
        return ImageDifferences

    def worst(self, count: int = 20) -> ImageDifferences:
        """The rows where the first backbone is furthest behind."""
        return self.nsmallest(count, "rank")

    def pictured(self) -> ImageDifferences:
        """The rows whose images both runs have stored pictures of."""
        packs = self.packs.values()
        return self[[bool(packs) and all(x in pack.images for pack in packs) for x in self.image]]

    def pictures(self, most: int = 20) -> Image.Image:
        """The first ``most`` of the ``pictured`` images, their ground truth and both predictions.
        Raises ``UserError`` if there are none."""
        rows = self.pictured().drop_duplicates("image").head(most)
        if not self.packs:
            raise UserError(NO_PICTURES)
        if rows.empty:
            raise UserError(
                f"no pictures of these {len(self)} rows are stored: a run stores those of at most"
                " 48 images, evenly spaced; ask for more rows"
            )
        first, second = self.packs.values()
        roles = (first, "image"), (first, "truth"), (first, "prediction"), (second, "prediction")
        tiles = [
            [pack.pixels(pack.images[name].get(role)) for pack, role in roles]
            for name in rows.image
        ]
        captions = [
            f"{row.image}: {row.difference:+.2f} (rank {row.rank})" for row in rows.itertuples()
        ]
        legend = first.pixels(first.legend) if first.legend else None
        return draw_grid(("image", "ground truth", *self.packs), tiles, captions, legend)

    def traits(self, error_rate: float = LEVEL) -> pd.DataFrame:
        """What goes with the difference, the strongest first: trait, Spearman's ρ, number of
        images, and which backbone more of it favours.

        Traits are what the probe knows of each image, and the brightness of the photographs of
        which there are pictures; those in which at least ``MIN_IMAGES`` images differ from the
        rest. Where images are not independent, a unit counts as one image.

        The verdicts hold together: Holm's correction (Scand. J. Stat. 6, 1979), for which traits
        may depend on each other in any way. Benjamini and Hochberg's may not be used: areas of
        classes sum to the image, so they depend negatively on each other (Benjamini, Yekutieli,
        Ann. Stat. 29, 2001).

        Args:
            error_rate: probability of any false verdict.
        """
        traits = pd.DataFrame(self.scores.traits(), self.scores.images).astype(float)
        for pack in list(self.packs.values())[:1]:
            brightness = {
                name: pack.pixels(files["image"]).mean()
                for name, files in pack.images.items()
                if pack.size(name, "image")
            }
            traits["brightness"] = pd.Series(brightness, dtype=float)
        traits = traits[~traits.index.duplicated()]
        gains = self.scores.direction * self.set_index("image").difference
        repeats = max(1, len(self) / len(self.scores.units))
        estimates = {}
        for name, values in traits.loc[gains.index].items():
            if values.count() - values.value_counts().max() >= MIN_IMAGES:
                z = fisher_z(values, gains)
                if np.isnan(z.value):  # the difference is the same on all images
                    continue
                variance, units = z.image_variance * repeats, round(z.images / repeats)
                estimates[name] = replace(z, image_variance=variance, images=units)
        judged = judge_jointly([*estimates.values()], error_rate=error_rate)
        *_, mine, base, _, _ = self.columns
        outcomes = {"win": mine, "loss": base, "tie": "undecided"}
        rows = [
            (name, np.tanh(z.value), z.images, outcomes.get(z.verdict(), "unknown"))
            for name, z in zip(estimates, judged, strict=True)
        ]
        columns = ["trait", "Spearman's ρ", "images", "more of it favours"]
        frame = pd.DataFrame(rows, columns=columns)
        return frame.sort_values(columns[1], key=abs, ascending=False)


NO_PICTURES = (
    "these runs store no pictures: dense tasks, detection, videos, retrieval of instances and"
    " matching do, classification and image-text tasks do not"
)


def compare_images(
    store: Store, cells: Mapping[str, Cell], by_class: bool = False
) -> ImageDifferences:
    """In the order of ranks, without images that have no score.

    Args:
        cells: of both backbones, of one task, protocol and seed; the second is what the first is
            compared with.
        by_class: a row for each class of an image.

    Raises:
        TrackingError: they cannot be compared.
    """
    loaded = {name: load_scores(store, cell) for name, cell in cells.items()}
    scores = {name: each for name, each in loaded.items() if each}
    mine, base = cells
    problem = next(filter(None, find_problems([*scores.values()])), "")
    if len(scores) < 2:
        problem = why_unscored(cells[mine].kind)
    elif by_class and not scores[mine].of_classes():
        problem = "its images have no scores of classes"
    if problem:
        task = cells[mine].task
        raise TrackingError(f"{mine} and {base} cannot be compared by image on {task}: {problem}")
    columns = {
        name: pd.DataFrame(each.of_classes(), each.images).stack()
        if by_class
        else pd.Series(each.of_images(), each.images)
        for name, each in scores.items()
    }
    frame = ImageDifferences(columns).dropna()
    frame = frame.rename_axis(["image", "class"][: 1 + by_class]).reset_index()
    frame["difference"] = frame[mine] - frame[base]
    order = scores[mine].direction * frame.difference
    frame["rank"] = order.rank(method="first").astype(int)
    packs = {name: pack for name in cells if (pack := read_pack(store, cells[name]))}
    frame.scores, frame.packs = scores[mine], packs if len(packs) == 2 else {}
    return frame.sort_values("rank", ignore_index=True)


class DifferenceSection(NamedTuple):
    """Where two backbones differ on one task, of one seed."""

    column: TaskColumn
    seed: int
    frame: ImageDifferences


def check_pairs(selection: Selection, names: Sequence[str]) -> None:
    """Raise ``TrackingError`` if a name has no partner, or the report has no such backbone."""
    if len(names) % 2 or not set(names) <= set(selection.backbones):
        raise TrackingError(
            f"--pairs {','.join(names)}: give two of {', '.join(selection.backbones)}, as A,B"
        )


def where_they_differ(
    store: Store, selection: Selection, names: Sequence[str], notes: list[str]
) -> list[DifferenceSection]:
    """A section for each task of each pair of names, with the first seed that both have.

    Args:
        notes: gets why a task has no section.
    """
    sections = []
    for pair in zip(names[::2], names[1::2], strict=True):
        for column in selection.columns:
            mine, base = (selection.cells.get((name, column), ()) for name in pair)
            both = [cells for cells in product(mine, base) if cells[0].seed == cells[1].seed]
            for cells in both[:1]:
                try:
                    frame = compare_images(store, dict(zip(pair, cells, strict=True)))
                    sections.append(DifferenceSection(column, cells[0].seed, frame))
                except TrackingError as error:
                    notes.append(f"{error}.")
    return sections
