"""Samples of backbones on tasks, as a report has them, with a known ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from reports.judgement import Judgement, judge_differences
from reports.metrics import Metric
from reports.parts.summary import summarise
from reports.selection import Selection, TaskColumn
from reports.stats.resampling import MetricSample

RESAMPLES = 300


@dataclass(frozen=True)
class World:
    """What is simulated; noises are standard deviations of one image.

    Attributes:
        images: of each task (each on its own images, unless ``one_set``).
        seeds: of each backbone, the baseline first; the last entry is that of all that follow.
        effect: by how much the first backbone is better on every task.
        hard: noise of an image that all backbones share; apart: of an image and a backbone, over
            seeds.
        seed: noise of the mean of a backbone's seed on a task (``shared``: on all its tasks);
            interaction: of one seed on one image.
        unlike: factor over which tasks' seed variances are spread, evenly in its logarithm.
        noisy_task, noisy_base: factor of the seed variance of the first task, of the baseline.
        binary: every second task is right or wrong on an image.
        level: of the numbers; but at 50, all tasks are right or wrong on an image, and the noise of
            seeds is smaller by the standard deviation of such an image.
        single: number of tasks with one seed.
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
    unlike: float = 1.0
    noisy_task: float = 1.0
    noisy_base: float = 1.0
    binary: bool = True
    level: float = 50.0
    single: int = 0
    one_set: bool = False

    @property
    def names(self) -> list[str]:
        return ["base", *(f"net-{number}" for number in range(1, self.backbones))]

    @property
    def columns(self) -> list[TaskColumn]:
        metrics = (("top1", Metric()),)
        tasks = [f"set-{task}/linear" for task in range(self.tasks)]
        return [TaskColumn(task, "classification", "p", metrics) for task in tasks]


def simulate(world: World, rng: np.random.Generator) -> Judgement:
    """One report's numbers; the first backbone is ``effect`` above the level on every task."""
    every = sorted({seed for seeds in world.seeds for seed in seeds})
    names, count = world.names, world.images
    shape = (world.backbones, len(every), count)
    weights = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float32)
    common = rng.normal(0, world.shared, shape[:2])
    seeds_of = dict.fromkeys(names, every)
    selection = Selection([], names, "base", world.columns, {}, {}, seeds_of, {}, {})
    samples = {}
    hard = rng.normal(0, world.hard, count)
    wider = np.ones((world.backbones, 1))
    wider[0] = np.sqrt(world.noisy_base)
    for task, column in enumerate(world.columns):
        if not world.one_set:
            hard = rng.normal(0, world.hard, count)
            weights = weights[:, rng.permutation(count)]
        level = world.level + np.where(np.arange(world.backbones) == 1, world.effect, 0.0)
        factor = world.unlike ** rng.uniform(-0.5, 0.5) * (world.noisy_task if task == 0 else 1.0)
        moved = np.sqrt(factor) * wider * (common + rng.normal(0, world.seed, shape[:2]))
        scores = hard + rng.normal(0, world.apart, (shape[0], 1, shape[2]))
        scores = scores + rng.normal(0, world.interaction, shape)
        if world.level != 50:
            share = level[:, None] / 100
            share = share + moved * 2 * np.sqrt(share * (1 - share)) / 100
            spread = np.sqrt(world.hard**2 + world.apart**2 + world.interaction**2)
            scores = 100.0 * (scores / spread < special.ndtri(share)[:, :, None])
        else:
            scores = scores + (level[:, None] + moved)[:, :, None]
            if world.binary and task % 2:
                # right with a probability that grows with the score: the mean keeps its level
                threshold = rng.random((1, 1, count)) * 0.6 + 20 / 100
                scores = 100.0 * (threshold < 0.5 + (scores - 50) / 166)
        single = scores.astype(np.float32)
        resampled = np.einsum("rn,bsn->bsr", weights, single, optimize=True) / count
        for number, name in enumerate(names):
            seeds = world.seeds[min(number, len(world.seeds) - 1)]
            if task < world.single:
                seeds = seeds[:1]
            rows = [every.index(seed) for seed in seeds]
            values = scores[number, rows].mean(axis=1)
            resamples = resampled[number, rows].astype(float)
            sample = MetricSample(tuple(seeds), values, resamples, count)
            samples[name, column, "top1"] = sample
    return judge_differences(selection, samples)


@dataclass
class Rates:
    """The result of many reports.

    Attributes:
        false: share of reports with anything false: a headline, or a verdict on any task of any
            backbone.
        right: share whose headline says that the better backbone is better.
        decided: share of the better backbone's tasks that are called better.
        numbers, differences, gains: share of single 95 % intervals that cover.
    """

    reports: int
    false: float
    right: float
    decided: float
    numbers: float
    differences: float
    gains: float


def run(world: World, reports: int, rng: np.random.Generator) -> Rates:
    """Simulate reports, and compare their statements with the ground truth."""
    false, right, wins = 0, 0, 0
    covered: dict[str, list[bool]] = {"numbers": [], "differences": [], "gains": []}
    for _ in range(reports):
        analysis = simulate(world, rng)
        effects = {name: world.effect * (name == "net-1") for name in world.names}
        judged = []
        for (name, _, _), estimate in analysis.estimates.items():
            level = world.level + effects[name]
            covered["numbers"].append(estimate.low <= level <= estimate.high)
        for (name, _, _), gap in analysis.differences.items():
            judged.append((name, gap))
            alone = gap.at(0.05)
            covered["differences"].append(alone.low <= effects[name] <= alone.high)
        for name, gain in analysis.gains.items():
            judged.append((name, gain.iqm))
            alone = gain.iqm.at(0.05)
            covered["gains"].append(alone.low <= 2 * effects[name] <= alone.high)
        result = summarise(analysis)
        wrong = not world.effect and result.tone != "open"
        for name, estimate in judged:
            decided = estimate.verdict() in ("win", "loss")
            wrong |= decided and np.sign(estimate.value) != np.sign(effects[name])
        false += wrong
        wins += sum(analysis.outcome("net-1", column) == "win" for column in world.columns)
        right += result.tone == "better" and "net-1" in result.headline
    shares = {key: float(np.mean(each)) for key, each in covered.items()}
    decided = wins / reports / world.tasks
    return Rates(reports, false / reports, right / reports, decided, **shares)
