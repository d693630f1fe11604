"""Samples of backbones on tasks, as a report makes them from runs, and the truth that they come
from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reports.analysis import Analysis, conclude
from reports.metrics import Metric
from reports.parts.verdict import verdict
from reports.selection import Selection, TaskProtocol
from reports.stats.resampling import Sample

RESAMPLES = 300


@dataclass(frozen=True)
class World:
    """What is simulated; noises are standard deviations of one image, the level is 50.

    Attributes:
        images: of each task (each on images of its own, unless ``one_set``).
        seeds: of each backbone, the baseline first; the last one's are those of all that follow.
        effect: what the first backbone is better by on every task.
        hard: what images share over all backbones; apart: what a backbone has of its own on an
            image, over seeds.
        seed: of the mean, of a backbone's seed on a task (``shared``: on all its tasks at once);
            interaction: of one seed on one image.
        binary: every second task is right or wrong on an image.
        single: how many tasks have one seed.
    """

    backbones: int = 2
    tasks: int = 7
    images: int = 200
    seeds: Sequence[Sequence[int]] = ((0, 1, 2),)
    effect: float = 0.0
    hard: float = 15.0
    apart: float = 8.0
    seed: float = 0.4
    shared: float = 0.2
    interaction: float = 5.0
    binary: bool = True
    single: int = 0
    one_set: bool = False


def names(world: World) -> list[str]:
    return ["base", *(f"net-{number}" for number in range(1, world.backbones))]


def columns(world: World) -> list[TaskProtocol]:
    metric = (("top1", Metric()),)
    return [
        TaskProtocol(f"set-{task}/linear", "classification", "p", metric)
        for task in range(world.tasks)
    ]


def simulate(world: World, rng: np.random.Generator) -> Analysis:
    """One report's numbers. The truth of backbone b on every task is 50, or 50 + ``effect`` for the
    first."""
    every = sorted({seed for seeds in world.seeds for seed in seeds})
    shape = (world.backbones, len(every), world.images)
    weights = rng.multinomial(
        world.images, np.full(world.images, 1 / world.images), RESAMPLES
    ).astype(np.float32)
    common = rng.normal(0, world.shared, shape[:2])
    analysis = Analysis(
        Selection(
            [],
            names(world),
            "base",
            columns(world),
            {},
            {},
            dict.fromkeys(names(world), every),
            {},
            {},
        )
    )
    hard = rng.normal(0, world.hard, world.images)
    for place, column in enumerate(columns(world)):
        if not world.one_set:
            hard = rng.normal(0, world.hard, world.images)
            weights = weights[:, rng.permutation(world.images)]
        level = 50.0 + np.where(np.arange(world.backbones) == 1, world.effect, 0.0)[:, None, None]
        moved = (common + rng.normal(0, world.seed, shape[:2]))[:, :, None]
        scores = level + moved + hard + rng.normal(0, world.apart, (shape[0], 1, shape[2]))
        scores = scores + rng.normal(0, world.interaction, shape)
        if (
            world.binary and place % 2
        ):  # right with a probability that grows with the score: the mean keeps its level
            scores = 100.0 * (
                rng.random((1, 1, world.images)) * 0.6 + 20 / 100 < 0.5 + (scores - 50) / 166
            )
        resampled = (
            np.einsum("rn,bsn->bsr", weights, scores.astype(np.float32), optimize=True)
            / world.images
        )
        for number, name in enumerate(names(world)):
            seeds = world.seeds[min(number, len(world.seeds) - 1)]
            if place < world.single:
                seeds = seeds[:1]
            rows = [every.index(seed) for seed in seeds]
            values = scores[number, rows].mean(axis=1)
            analysis.samples[name, column, "top1"] = Sample(
                tuple(seeds), values, resampled[number, rows].astype(float), world.images
            )
    conclude(analysis)
    return analysis


@dataclass
class Found:
    """What came out of many reports.

    Attributes:
        false: share of reports that say anything false: a headline, or a verdict on any task of any
            backbone.
        right: share whose headline is about the backbone that is better, and says so.
        numbers, differences, gains: share of 95 % intervals, each taken alone, that hold the truth.
    """

    reports: int
    false: float
    right: float
    numbers: float
    differences: float
    gains: float


def run(world: World, reports: int, rng: np.random.Generator) -> Found:
    """Simulate reports, and compare what they say with the truth."""
    false, right = 0, 0
    covered: dict[str, list[bool]] = {"numbers": [], "differences": [], "gains": []}
    for _ in range(reports):
        analysis = simulate(world, rng)
        truth = {name: 50.0 + world.effect * (name == "net-1") for name in names(world)}
        gap = {name: truth[name] - 50.0 for name in truth}
        for (name, _, _), found in analysis.estimates.items():
            covered["numbers"].append(found.low <= truth[name] <= found.high)
        wrong = False
        for (name, _, _), found in analysis.differences.items():
            alone = found.at(0.05)
            covered["differences"].append(alone.low <= gap[name] <= alone.high)
            wrong |= found.verdict() in ("win", "loss") and np.sign(found.value) != np.sign(
                gap[name]
            )
        for name, gain in analysis.gains.items():
            alone = gain.typical.at(0.05)
            covered["gains"].append(alone.low <= 2 * gap[name] <= alone.high)
            wrong |= gain.typical.verdict() in ("win", "loss") and np.sign(
                gain.typical.value
            ) != np.sign(gap[name])
        said = verdict(analysis)
        wrong |= not world.effect and said.tone != "open"
        false += wrong
        right += said.tone == "better" and "net-1" in said.headline
    shares = {key: float(np.mean(each)) for key, each in covered.items()}
    return Found(reports, false / reports, right / reports, **shares)
