"""Samples of backbones on tasks, as a report has them, with a known ground truth."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from reports.comparison import Judgement, NumberKey, judge_differences
from reports.leaderboard import main_samples, mean_scores, rank_backbones
from reports.records import Metric
from reports.selection import Selection, TaskColumn
from reports.statistics import MetricSample

RESAMPLES = 200
HARD = 15.0  # noise of an image that all backbones share
APART = 8.0  # of an image and a backbone, over seeds
INTERACTION = 5.0  # of one seed on one image


@dataclass(frozen=True)
class World:
    """What is simulated; noises are standard deviations in points.

    Attributes:
        images: of each task, each on its own images.
        seeds: of each backbone.
        effect: by how much the first backbone is better on every task.
        seed: noise of the mean of a backbone's seed on a task; of its variance, the share
            ``of_seed`` is common to all tasks of a backbone's seed, and the share ``of_pair`` of
            the rest to all backbones with that seed.
        heavy: whether all noise has Student's distribution with 3 degrees of freedom.
        noisy_task, noisy_backbones: factor of the seed noise of the first task, of every fifth
            backbone from the baseline on.
        unlike: standard deviation of the logarithm of tasks' seed noise.
        binary: which share of the tasks is right or wrong on an image.
        level: of the numbers; but at 50, all tasks are right or wrong on an image.
    """

    backbones: int = 2
    tasks: int = 7
    images: int = 200
    seeds: int = 3
    effect: float = 0.0
    seed: float = 0.5
    of_seed: float = 0.0
    of_pair: float = 0.0
    heavy: bool = False
    noisy_task: float = 1.0
    noisy_backbones: float = 1.0
    unlike: float = 0.0
    binary: float = 0.5
    level: float = 50.0

    @property
    def names(self) -> list[str]:
        return ["base", *(f"net-{number}" for number in range(1, self.backbones))]

    @property
    def columns(self) -> list[TaskColumn]:
        return make_columns([Metric()] * self.tasks)

    def effects(self) -> np.ndarray:
        """(backbones,) how much better each is than the baseline."""
        return np.where(np.arange(self.backbones) == 1, self.effect, 0.0)


def make_columns(metrics: Sequence[Metric]) -> list[TaskColumn]:
    """A column for each metric."""
    return [
        TaskColumn(f"set-{task}/linear", "classification", "p", (("top1", metric),))
        for task, metric in enumerate(metrics)
    ]


@functools.lru_cache(maxsize=64)
def _weights(images: int) -> np.ndarray:
    shares = np.full(images, 1 / images)
    return np.random.default_rng(images).multinomial(images, shares, RESAMPLES).astype(np.float32)


def simulate(world: World, rng: np.random.Generator) -> dict[NumberKey, MetricSample]:
    """The samples of one report."""

    def noise(*shape: int) -> np.ndarray:
        if world.heavy:
            return rng.standard_t(3, shape).astype(np.float32) / np.sqrt(3)
        return rng.standard_normal(shape, np.float32)

    backbones, seeds, images = world.backbones, world.seeds, world.images
    wider = np.where(np.arange(backbones) % 5 == 0, world.noisy_backbones, 1.0)[:, None]
    common = noise(backbones, seeds)
    samples = {}
    for task, column in enumerate(world.columns):
        weights = _weights(images)[:, rng.permutation(images)]
        own, paired = noise(backbones, seeds), noise(1, seeds)
        rest = np.sqrt(1 - world.of_pair) * own + np.sqrt(world.of_pair) * paired
        moved = np.sqrt(world.of_seed) * common + np.sqrt(1 - world.of_seed) * rest
        factor = (world.noisy_task if task == 0 else 1.0) * np.exp(rng.normal(0, world.unlike))
        level = world.level + world.effects()[:, None] + world.seed * factor * wider * moved
        scores = HARD * noise(images) + APART * noise(backbones, 1, images)
        scores = scores + INTERACTION * noise(backbones, seeds, images)
        if world.level != 50:
            spread = np.sqrt(HARD**2 + APART**2 + INTERACTION**2)
            share = np.clip(level / 100, 1e-4, 1 - 1e-4)
            scores = 100.0 * (scores / spread < special.ndtri(share)[:, :, None])
        else:
            scores = scores + level[:, :, None]
            if task < world.binary * world.tasks:
                # right with a probability that grows with the score: the mean keeps its level
                threshold = rng.random((1, 1, images)) * 0.6 + 20 / 100
                scores = 100.0 * (threshold < 0.5 + (scores - 50) / 166)
        scores = scores.astype(np.float32)
        resampled = np.einsum("rn,bsn->bsr", weights, scores, optimize=True) / images
        for number, name in enumerate(world.names):
            values, over_images = scores[number].mean(axis=1), resampled[number].astype(float)
            sample = MetricSample(tuple(range(seeds)), values, over_images, images)
            samples[name, column, "top1"] = sample
    return samples


def judge(samples: Mapping[NumberKey, MetricSample], baseline: str = "base") -> Judgement:
    """The judgement of samples."""
    names = list(dict.fromkeys(name for name, _, _ in samples))
    columns = list(dict.fromkeys(column for _, column, _ in samples))
    seeds = {
        name: sorted({s for k, v in samples.items() if k[0] == name for s in v.seeds})
        for name in names
    }
    return judge_differences(
        Selection([], names, baseline, columns, {}, {}, seeds, {}, {}), samples
    )


Rates = dict[str, tuple[float, float]]  # name → share and its standard error


def rates(reports: Sequence[Mapping[str, Sequence[bool]]]) -> Rates:
    """Shares over reports, which are independent; what is in one report is not."""
    shares: dict[str, list[float]] = defaultdict(list)
    for report in reports:
        for name, cases in report.items():
            if len(cases):
                shares[name].append(float(np.mean(cases)))
    return {
        name: (float(np.mean(each)), float(np.std(each) / np.sqrt(max(len(each) - 1, 1))))
        for name, each in shares.items()
    }


def check(judged: Judgement, world: World) -> dict[str, list[bool]]:
    """A report's statements against the ground truth."""
    effects = dict(zip(world.names, world.effects(), strict=True))
    result: dict[str, list[bool]] = defaultdict(list)

    def covers(name: str, interval: tuple[float, float], value: float) -> None:
        result[name].append(interval[0] <= value <= interval[1])

    wrong = False
    for (name, _, _), number in judged.estimates.items():
        covers("numbers", number.interval, world.level + effects[name])
    for (name, _, _), gap in judged.differences.items():
        covers("differences", gap.interval, effects[name])
        if effects[name]:
            result["decided"].append(gap.verdict() == "win")
        wrong |= _is_wrong(gap.verdict(), effects[name])
    percent = {name: 100 * effect / world.level for name, effect in effects.items()}
    for (name, _), gain in judged.task_gains.items():
        covers("gains", gain.interval, percent[name])
    for name, of_tasks in judged.gains.items():
        mean = of_tasks.mean
        covers("mean gains", mean.interval, percent[name])
        if effects[name]:
            result["mean decided"].append(mean.verdict() == "win")
        wrong |= _is_wrong(mean.verdict(), effects[name])
    result["false"].append(wrong)
    return result


def _is_wrong(verdict: str, effect: float) -> bool:
    return (verdict == "win" and effect <= 0) or (verdict == "loss" and effect >= 0)


def run(
    world: World | Callable[[np.random.Generator], World], reports: int, rng: np.random.Generator
) -> Rates:
    """Simulate reports, and compare their statements with the ground truth."""
    results = []
    for _ in range(reports):
        fixed = world if isinstance(world, World) else world(rng)
        results.append(check(judge(simulate(fixed, rng)), fixed))
    return rates(results)


def run_places(world: World, reports: int, rng: np.random.Generator) -> Rates:
    """How often all places of a leaderboard contain the true ones; equal backbones share theirs."""
    effects = dict(zip(world.names, world.effects(), strict=True))
    results = []
    for _ in range(reports):
        ranks = rank_backbones(mean_scores(main_samples(simulate(world, rng))))
        are_covered = all(
            rank.first <= 1 + sum(world.effects() > effects[name])
            and rank.last >= sum(world.effects() >= effects[name])
            for name, rank in ranks.items()
        )
        results.append({"places": [are_covered]})
    return rates(results)
