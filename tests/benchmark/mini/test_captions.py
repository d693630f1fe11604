"""Captions: as wrong, as incomplete and as varied as stated, and no more."""

import numpy as np
import pytest

from benchmark.mini.captions import (
    SYNONYMS,
    CaptionNoise,
    clean_captions,
    seen_objects,
    web_caption,
)
from benchmark.mini.render import render_ground_truth
from benchmark.mini.scene import make_scene
from benchmark.mini.shapes import CLASSES

NAMES = {name: (name, *SYNONYMS[name]) for name in CLASSES}


def classes_named(text):
    """Classes that a caption names, by longest match, so that 'chair' is not found in 'dining
    chair' twice."""
    remaining, names = f" {text.lower()} ", set()
    for word, name in sorted(
        ((w, n) for n, words in NAMES.items() for w in words), key=lambda pair: -len(pair[0])
    ):
        if word in remaining:
            names.add(name)
            remaining = remaining.replace(word, "")
    return names


@pytest.fixture(scope="module")
def scenes():
    scenes_and_objects = []
    for seed in range(40):
        scene = make_scene(np.random.default_rng(seed))
        scenes_and_objects.append((scene, seen_objects(scene, render_ground_truth(scene, 64))))
    return scenes_and_objects


def test_rates_are_those_stated(scenes):
    noise = CaptionNoise(irrelevant=0.1, wrong=0.2)
    rng = np.random.default_rng(0)
    kinds = {"right": 0, "wrong": 0, "irrelevant": 0}
    named_main = 0
    for scene, seen in scenes * 50:
        caption = web_caption(rng, scene, seen, noise)
        kinds[caption.kind] += 1
        named, present = classes_named(caption.text), {item.name for item in seen}
        if caption.kind == "right":
            assert named
            assert named <= present, "a right caption names only what is there"
            named_main += seen[0].name in named
        elif caption.kind == "wrong":
            assert named
            assert not named & present
        else:
            assert not named
    total = sum(kinds.values())
    # three standard errors of 2,000 draws
    assert kinds["irrelevant"] / total == pytest.approx(0.1, abs=0.02)
    assert kinds["wrong"] / total == pytest.approx(0.2, abs=0.03)
    assert 1 - noise.omit_main < named_main / kinds["right"] <= 1


def test_objects_are_omitted_at_the_stated_rate(scenes):
    rng = np.random.default_rng(1)
    noise = CaptionNoise(irrelevant=0, wrong=0, omit_main=0, omit_other=0.45)
    several = [
        (scene, seen)
        for scene, seen in scenes
        if len({item.name for item in seen}) == len(seen) and len(seen) > 1
    ]
    named = possible = 0
    for scene, seen in several * 60:
        names = classes_named(web_caption(rng, scene, seen, noise).text)
        assert seen[0].name in names
        named += len(names) - 1
        possible += len(seen) - 1
    assert possible > 500
    assert named / possible == pytest.approx(0.55, abs=0.06)


def test_without_noise_everything_is_said(scenes):
    rng = np.random.default_rng(2)
    noise = CaptionNoise(0, 0, 0, 0, synonym=0, colour=1, room=0)
    for scene, seen in scenes:
        text = web_caption(rng, scene, seen, noise).text.lower()
        for item in seen:
            assert f"{item.colour}" in text
            assert item.name in text


def test_clean_captions_name_the_main_object_and_mostly_tell_pictures_apart(scenes):
    every = []
    for seed, (scene, seen) in enumerate(scenes):
        captions = clean_captions(np.random.default_rng(seed), scene, seen)
        assert len(captions) == len(set(captions)) == 5
        for caption in captions:
            assert seen[0].name in classes_named(caption)
            assert seen[0].colour in caption
        every.append(captions)
    together = {tuple(captions) for captions in every}
    assert len(together) == len(every)
    texts = [caption for captions in every for caption in captions]
    assert len(set(texts)) > 0.9 * len(texts)
