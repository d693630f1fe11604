"""Captions: noisy and incomplete like on the web, or five clean ones for retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

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
IRRELEVANT = """\
click to see more pictures
new arrivals this week
our favourite ideas for your home
untitled
image may be subject to copyright
best prices online, free delivery
picture of the day
stock photo
photo by a friend
see the full gallery here
sale ends soon
how we spent the weekend""".splitlines()
FORMS = """\
{}
a photo of {}
a picture of {}
{} for sale
{} in a room
look at {}
there is {}
{}, interior view
my new photo: {}
close look at {}
we found {}
{} at home""".splitlines()
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
    """An object as the picture shows it: its share of the picture and mean column, 0 to 1."""

    name: str
    colour: str
    texture: str
    share: float
    column: float


def seen_objects(scene: Scene, ground_truth: GroundTruth) -> list[SeenObject]:
    """The objects that can be named in the picture, largest first."""
    objects = []
    for number, placed in enumerate(scene.objects, start=1):
        mask = ground_truth.instance == number
        if mask.any() and number not in ground_truth.too_small:
            column = (float(np.nonzero(mask)[1].mean()) + 0.5) / len(mask)
            seen = placed.name, placed.colour, placed.texture, float(mask.mean()), column
            objects.append(SeenObject(*seen))
    return sorted(objects, key=lambda seen: -seen.share)


def web_caption(rng: Random, scene: Scene, seen: Sequence[SeenObject], noise: CaptionNoise) -> str:
    """One noisy caption of what is ``seen``."""
    draw = rng.random()
    if draw < noise.irrelevant or not seen:
        return rng.choice(IRRELEVANT)
    if draw < noise.irrelevant + noise.wrong:
        absent = [name for name in CLASSES if name not in {item.name for item in seen}]
        named = [
            SeenObject(name, rng.choice(COLOUR_NAMES), "plain", 0.1, 0.5)
            for name in rng.sample(absent, rng.randrange(1, 3))
        ]
    else:
        named = [item for item in seen[1:] if rng.random() >= noise.omit_other]
        if not named or rng.random() >= noise.omit_main:
            named.insert(0, seen[0])
    phrases = []
    for item in named:
        words = [rng.choice(SYNONYMS[item.name]) if rng.random() < noise.synonym else item.name]
        if rng.random() < noise.colour:
            words.insert(0, item.colour)
        if item.texture in PATTERNS and rng.random() < 0.3:
            words.insert(0, item.texture)
        phrases.append(with_article(" ".join(words)))
    text = rng.choice(FORMS).format(join(phrases))
    if rng.random() < noise.room:
        text += rng.choice((f", {scene.wall} wall", f" on a {scene.floor} floor"))
    if rng.random() < 0.15:
        decorated = text.capitalize(), text + ".", text + " !", f"{text} #{rng.randrange(1, 100)}"
        text = rng.choice(decorated)
    return text


def clean_captions(rng: Random, scene: Scene, seen: Sequence[SeenObject]) -> list[str]:
    """Five captions with the main objects, their colours, and where they are."""
    main, neighbours = seen[0], seen[1:3]
    subject = with_article(f"{main.colour} {main.name}")
    rest = [with_article(f"{item.colour} {item.name}") for item in neighbours]
    floor = f"{with_article(scene.floor)} {'counter' if scene.on_counter else 'floor'}"
    wall = f"{with_article(scene.wall)} wall"
    texture = f"{main.texture} " if main.texture in PATTERNS else ""
    if neighbours:
        side = "left" if neighbours[0].column > main.column else "right"
        last = f"{subject} {side} of {rest[0]}"
    else:
        last = f"{'a close view' if main.share > 0.2 else 'a wide view'} of {subject} alone"
    return [
        f"{subject} on {floor}" + (f" with {join(rest)}" if rest else ""),
        f"a photo of {join([subject, *rest])}",
        f"{with_article(f'{texture}{main.colour} {main.name}')} in front of {wall}",
        f"{with_article(f'{main.colour} {rng.choice(SYNONYMS[main.name])}')}, {wall} and {floor}",
        last,
    ]


def with_article(words: str) -> str:
    """``words`` after a or an."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def join(phrases: Sequence[str]) -> str:
    """``a, b and c``."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
