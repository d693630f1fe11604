"""Captions: noisy and incomplete like on the web, or five clean ones for retrieval."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from benchmark.mini.render import IGNORE, GroundTruth
from benchmark.mini.scene import COLOUR_NAMES, Item, Scene
from benchmark.mini.shapes import CLASSES

OTHER_NAMES = (
    "bookcase",
    "flask",
    "seat",
    "light",
    "screen",
    "cup",
    "houseplant",
    "couch",
    "desk",
    "toy bear",
)
SYNONYMS = dict(zip(CLASSES, OTHER_NAMES, strict=True))
IRRELEVANT = ("click to see more pictures", "new arrivals this week", "untitled", "stock photo")
FORMS = ("{}", "a photo of {}", "{} for sale", "{} in a room", "there is {}", "my new photo: {}")


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


def seen_objects(scene: Scene, target: GroundTruth) -> list[Item]:
    """The objects that can be named in the picture, largest first."""
    areas = np.bincount(
        target.instance[target.semantic != IGNORE], minlength=len(scene.objects) + 1
    )
    numbers = [number for number in np.argsort(-areas[1:], kind="stable") if areas[1 + number]]
    return [scene.objects[number] for number in numbers]


def web_caption(rng: Random, scene: Scene, seen: Sequence[Item], noise: CaptionNoise) -> str:
    """One noisy caption of what is ``seen``."""
    draw = rng.random()
    if draw < noise.irrelevant or not seen:
        return rng.choice(IRRELEVANT)
    named = [item for item in seen[1:] if rng.random() >= noise.omit_other]
    if not named or rng.random() >= noise.omit_main:
        named.insert(0, seen[0])
    if draw < noise.irrelevant + noise.wrong:
        absent = [name for name in CLASSES if name not in {item.name for item in seen}]
        named = [Item(rng.choice(absent), rng.choice(COLOUR_NAMES), "plain")]
    phrases = []
    for item in named:
        words = [SYNONYMS[item.name] if rng.random() < noise.synonym else item.name]
        words[:0] = [item.colour] if rng.random() < noise.colour else []
        words[:0] = [item.texture] if item.texture != "plain" and rng.random() < 0.3 else []
        phrases.append(with_article(" ".join(words)))
    text = rng.choice(FORMS).format(" and ".join(phrases))
    if rng.random() < noise.room:
        text += rng.choice((f", {scene.wall} wall", f" on a {scene.floor} {scene.setting}"))
    return text


def clean_captions(scene: Scene, seen: Sequence[Item]) -> list[str]:
    """Five captions of the main objects, their colours, and the room."""
    phrases = [with_article(f"{item.colour} {item.name}") for item in seen[:3]]
    synonym = with_article(f"{seen[0].colour} {SYNONYMS[seen[0].name]}")
    floor, wall = f"{with_article(scene.floor)} {scene.setting}", f"{with_article(scene.wall)} wall"
    return [
        f"{' and '.join(phrases)} on {floor}",
        f"a photo of {' and '.join(phrases)}",
        f"{phrases[0]} in front of {wall}",
        f"{synonym}, {wall} and {floor}",
        f"{phrases[0]}, {seen[0].texture}, beside {' and '.join(phrases[1:]) or 'nothing'}",
    ]


def with_article(words: str) -> str:
    """``words`` after a or an."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
