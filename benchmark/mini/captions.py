"""Captions: noisy and incomplete like on the web, or five clean ones for retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from benchmark.mini.materials import COLOUR_NAMES
from benchmark.mini.render import GroundTruth
from benchmark.mini.scene import Scene
from benchmark.mini.shapes import CLASSES

SYNONYMS = {
    "bookshelf": ("bookcase", "shelf with books"),
    "bottle": ("flask",),
    "chair": ("seat", "dining chair"),
    "lamp": ("light", "lamp with a shade"),
    "monitor": ("screen", "tv"),
    "mug": ("cup", "coffee mug"),
    "plant": ("houseplant", "potted plant"),
    "sofa": ("couch", "settee"),
    "table": ("desk", "dining table"),
    "teddy": ("teddy bear", "toy bear"),
}
IRRELEVANT = (
    "click to see more pictures",
    "new arrivals this week",
    "our favourite ideas for your home",
    "untitled",
    "image may be subject to copyright",
    "best prices online, free delivery",
    "picture of the day",
    "stock photo",
    "photo by a friend",
    "see the full gallery here",
    "interior design inspiration",
    "sale ends soon",
    "how we spent the weekend",
    "before and after",
)
FORMS = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "{} for sale",
    "{} in a room",
    "look at {}",
    "there is {}",
    "{}, interior view",
    "my new photo: {}",
    "close look at {}",
    "we found {}",
    "{} at home",
)
PATTERNS = ("checkered", "striped", "dotted", "wooden", "brick")


@dataclass(frozen=True)
class CaptionNoise:
    """How bad web captions are; each rate is a probability."""

    irrelevant: float = 0.06  # the caption says nothing about the picture
    wrong: float = 0.06  # it describes another picture: other objects, other colours
    omit_main: float = 0.08  # the largest object is left out (when there is another to name)
    omit_other: float = 0.45  # each other object is left out
    synonym: float = 0.25  # an object goes by another name than its class's
    colour: float = 0.6  # an object's colour is named
    room: float = 0.15  # wall or floor is mentioned


class SeenObject(NamedTuple):
    """An object as the picture shows it."""

    name: str
    colour: str
    texture: str
    share: float  # of the picture
    centre: tuple[float, float]  # column and row, 0 to 1


class WebCaption(NamedTuple):
    """A caption and what was done to it."""

    text: str
    kind: Literal["right", "wrong", "irrelevant"]


def seen_objects(scene: Scene, ground_truth: GroundTruth) -> list[SeenObject]:
    """The objects that can be named in the picture, largest first."""
    size = ground_truth.instance.shape[0]
    objects = []
    for number, placed in enumerate(scene.objects, start=1):
        rows, columns = np.nonzero(ground_truth.instance == number)
        if len(rows) and number not in ground_truth.too_small:
            centre = (float(columns.mean() + 0.5) / size, float(rows.mean() + 0.5) / size)
            objects.append(
                SeenObject(placed.name, placed.colour, placed.texture, len(rows) / size**2, centre)
            )
    return sorted(objects, key=lambda seen: -seen.share)


def web_caption(
    rng: np.random.Generator, scene: Scene, seen: Sequence[SeenObject], noise: CaptionNoise
) -> WebCaption:
    """One noisy caption of what is ``seen``."""
    draw = rng.random()
    if draw < noise.irrelevant or not seen:
        return WebCaption(str(rng.choice(IRRELEVANT)), "irrelevant")
    if draw < noise.irrelevant + noise.wrong:
        present = {item.name for item in seen}
        absent = [name for name in CLASSES if name not in present]
        seen = [
            SeenObject(str(name), str(rng.choice(COLOUR_NAMES)), "plain", 0.1, (0.5, 0.5))
            for name in rng.choice(absent, int(rng.integers(1, 3)), replace=False)
        ]
        return WebCaption(_web_text(rng, scene, seen, noise), "wrong")
    named = [item for item in seen[1:] if rng.random() >= noise.omit_other]
    if not named or rng.random() >= noise.omit_main:
        named.insert(0, seen[0])
    return WebCaption(_web_text(rng, scene, named, noise), "right")


def _web_text(
    rng: np.random.Generator, scene: Scene, objects: Sequence[SeenObject], noise: CaptionNoise
) -> str:
    phrases = []
    for item in objects:
        name = str(rng.choice(SYNONYMS[item.name])) if rng.random() < noise.synonym else item.name
        words = [item.colour] if rng.random() < noise.colour else []
        if item.texture in PATTERNS and rng.random() < 0.3:
            words.insert(0, item.texture)
        phrases.append(with_article(" ".join([*words, name])))
    text = str(rng.choice(FORMS)).format(join(phrases))
    if rng.random() < noise.room:
        text += str(rng.choice([f", {scene.wall} wall", f" on a {scene.floor} floor"]))
    if rng.random() < 0.15:
        text = str(
            rng.choice(
                [text.capitalize(), text + ".", text + " !", text + f" #{rng.integers(1, 100)}"]
            )
        )
    return text


def clean_captions(rng: np.random.Generator, scene: Scene, seen: Sequence[SeenObject]) -> list[str]:
    """Five captions with the main objects, their colours, and where they are."""
    main, neighbours = seen[0], seen[1:3]
    subject = with_article(f"{main.colour} {main.name}")
    rest = [with_article(f"{item.colour} {item.name}") for item in neighbours]
    floor = f"a {scene.floor} {'counter' if scene.location == 'counter' else 'floor'}"
    wall = f"a {scene.wall} wall"
    texture = f"{main.texture} " if main.texture in PATTERNS else ""
    synonym = str(rng.choice(SYNONYMS[main.name]))
    if neighbours:
        side = "left" if neighbours[0].centre[0] > main.centre[0] else "right"
        last = f"{subject} {side} of {rest[0]}"
    else:
        last = f"{'a close view' if main.share > 0.2 else 'a wide view'} of {subject} alone"
    return [
        f"{subject} on {floor}" + (f" with {join(rest)}" if rest else ""),
        f"a photo of {join([subject, *rest])}",
        f"{with_article(f'{texture}{main.colour} {main.name}')} in front of {wall}",
        f"{with_article(f'{main.colour} {synonym}')}, {wall} and {floor}",
        last,
    ]


def with_article(words: str) -> str:
    """``words`` after a or an."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def join(phrases: Sequence[str]) -> str:
    """``a, b and c``."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
