"""Captions: noisy and incomplete ones as the web has them, and five clean, mostly distinguishing
ones for retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from benchmark.mini.materials import COLOUR_NAMES
from benchmark.mini.render import Truth
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


class Seen(NamedTuple):
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


def seen_objects(scene: Scene, truth: Truth) -> list[Seen]:
    """The objects that can be named in the picture, largest first."""
    size = truth.instance.shape[0]
    found = []
    for number, thing in enumerate(scene.objects, start=1):
        rows, columns = np.nonzero(truth.instance == number)
        if len(rows) and number not in truth.too_small:
            centre = (float(columns.mean() + 0.5) / size, float(rows.mean() + 0.5) / size)
            found.append(Seen(thing.name, thing.colour, thing.texture, len(rows) / size**2, centre))
    return sorted(found, key=lambda seen: -seen.share)


def web_caption(
    rng: np.random.Generator, scene: Scene, seen: Sequence[Seen], noise: CaptionNoise
) -> WebCaption:
    """One noisy caption of what is ``seen``."""
    draw = rng.random()
    if draw < noise.irrelevant or not seen:
        return WebCaption(str(rng.choice(IRRELEVANT)), "irrelevant")
    if draw < noise.irrelevant + noise.wrong:
        there = {thing.name for thing in seen}
        others = [name for name in CLASSES if name not in there]
        seen = [
            Seen(str(name), str(rng.choice(COLOUR_NAMES)), "plain", 0.1, (0.5, 0.5))
            for name in rng.choice(others, int(rng.integers(1, 3)), replace=False)
        ]
        return WebCaption(_web_text(rng, scene, seen, noise), "wrong")
    kept = [thing for thing in seen[1:] if rng.random() >= noise.omit_other]
    if not kept or rng.random() >= noise.omit_main:
        kept.insert(0, seen[0])
    return WebCaption(_web_text(rng, scene, kept, noise), "right")


def _web_text(
    rng: np.random.Generator, scene: Scene, things: Sequence[Seen], noise: CaptionNoise
) -> str:
    phrases = []
    for thing in things:
        name = str(rng.choice(SYNONYMS[thing.name])) if rng.random() < noise.synonym else thing.name
        words = [thing.colour] if rng.random() < noise.colour else []
        if thing.texture in PATTERNS and rng.random() < 0.3:
            words.insert(0, thing.texture)
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


def clean_captions(rng: np.random.Generator, scene: Scene, seen: Sequence[Seen]) -> list[str]:
    """Five captions that name the main objects with their colours, and where they are or what room
    it is."""
    main, others = seen[0], seen[1:3]
    what = with_article(f"{main.colour} {main.name}")
    rest = [with_article(f"{thing.colour} {thing.name}") for thing in others]
    floor = f"a {scene.floor} {'counter' if scene.place == 'counter' else 'floor'}"
    wall = f"a {scene.wall} wall"
    texture = f"{main.texture} " if main.texture in PATTERNS else ""
    synonym = str(rng.choice(SYNONYMS[main.name]))
    if others:
        side = "left" if others[0].centre[0] > main.centre[0] else "right"
        last = f"{what} {side} of {rest[0]}"
    else:
        last = f"{'a close view' if main.share > 0.2 else 'a wide view'} of {what} alone"
    return [
        f"{what} on {floor}" + (f" with {join(rest)}" if rest else ""),
        f"a photo of {join([what, *rest])}",
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
