"""Captions: as wrong, as incomplete and as varied as stated, and no more."""

from collections import Counter
from random import Random

import pytest

from benchmark.mini.solids import CLASSES, draw_picture
from benchmark.mini.world import SYNONYMS, CaptionNoise, clean_captions, seen_objects, web_caption

NAMES = {name: (name, SYNONYMS[name]) for name in CLASSES}


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
def pictures():
    triples = [draw_picture(Random(seed), "home", 64) for seed in range(40)]
    return [(scene, seen_objects(scene, ground_truth)) for scene, _, ground_truth in triples]


def test_rates_are_those_stated(pictures):
    noise = CaptionNoise(irrelevant=0.1, wrong=0.2)
    rng, kinds, named_main = Random(0), Counter(), 0
    for scene, seen in pictures * 50:
        named = classes_named(web_caption(rng, scene, seen, noise))
        present = {item.name for item in seen}
        kind = "irrelevant" if not named else "right" if named & present else "wrong"
        assert kind != "right" or named <= present, "a right caption names only what is there"
        kinds[kind] += 1
        named_main += seen[0].name in named
    total = sum(kinds.values())
    # three standard errors of 2,000 draws
    assert kinds["irrelevant"] / total == pytest.approx(0.1, abs=0.02)
    assert kinds["wrong"] / total == pytest.approx(0.2, abs=0.03)
    assert 1 - noise.omit_main < named_main / kinds["right"] <= 1


def test_objects_are_omitted_at_the_stated_rate(pictures):
    rng = Random(1)
    noise = CaptionNoise(irrelevant=0, wrong=0, omit_main=0, omit_other=0.45)
    several = [
        (scene, seen)
        for scene, seen in pictures
        if len({item.name for item in seen}) == len(seen) and len(seen) > 1
    ]
    named = possible = 0
    for scene, seen in several * 60:
        names = classes_named(web_caption(rng, scene, seen, noise))
        assert seen[0].name in names
        named += len(names) - 1
        possible += len(seen) - 1
    assert possible > 500
    assert named / possible == pytest.approx(0.55, abs=0.06)


def test_clean_captions_name_the_main_object_and_mostly_tell_pictures_apart(pictures):
    every = []
    for scene, seen in pictures:
        captions = clean_captions(scene, seen)
        assert len(captions) == len(set(captions)) == 5
        for caption in captions:
            assert seen[0].name in classes_named(caption) and seen[0].colour in caption
        every += captions
    assert len(set(every)) > 0.9 * len(every)
