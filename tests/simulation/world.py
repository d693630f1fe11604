"""Samples of backbones on tasks, as a report has them, with a known ground truth."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from scipy import special

from reports.comparison import (
    Judgement,
    NumberKey,
    first_level,
    judge_differences,
)
from reports.leaderboard import Ranking, main_samples, mean_scores, rank_backbones
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
        of_image: of the variance over images, but for that of single seeds, the share that is
            common to all tasks, which are then on the same images.
        seeds: of each backbone.
        effect: by how much the ``better`` first backbones are better than the others, on the share
            ``differ`` of the tasks.
        further: metrics of each task beside the main one, on which it is better by
            ``further_effect``; half of their variance is that of the main one.
        base_seeds: of the baseline, where it has others than 0, 1 …
        task_seeds: of all backbones on each task, where tasks have different ones; from the last
            on they begin again.
        scored: whether the scores of images are stored.
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
    of_image: float = 0.0
    seeds: int = 3
    effect: float = 0.0
    differ: float = 1.0
    better: int = 1
    further: int = 0
    further_effect: float = 0.0
    base_seeds: tuple[int, ...] = ()
    task_seeds: tuple[tuple[int, ...], ...] = ()
    scored: bool = True
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
        return make_columns([Metric()] * self.tasks, self.further)

    def effects(self, is_main: bool = True) -> np.ndarray:
        """(tasks, backbones) how much better each is than the baseline in a metric."""
        differ = np.arange(self.tasks) < round(self.differ * self.tasks)
        effect = self.effect if is_main else self.further_effect
        is_better = np.isin(np.arange(self.backbones), range(1, 1 + self.better))
        return effect * differ[:, None] * is_better


def make_columns(metrics: Sequence[Metric], further: int = 0) -> list[TaskColumn]:
    """A column for each metric, with so many further ones."""
    others = tuple((f"further-{number}", Metric(shown=True)) for number in range(further))
    return [
        TaskColumn(f"set-{task}/linear", "classification", "p", (("top1", metric), *others))
        for task, metric in enumerate(metrics)
    ]


@functools.lru_cache(maxsize=64)
def _weights(images: int) -> np.ndarray:
    return np.random.default_rng(images).poisson(1.0, (RESAMPLES, images)).astype(np.float32)


def simulate(world: World, rng: np.random.Generator) -> dict[NumberKey, MetricSample]:
    """The samples of one report."""

    def noise(*shape: int) -> np.ndarray:
        if world.heavy:
            return rng.standard_t(3, shape).astype(np.float32) / np.sqrt(3)
        return rng.standard_normal(shape, np.float32)

    of_tasks = chain.from_iterable(world.task_seeds)
    seeds, images = max([world.seeds - 1, *world.base_seeds, *of_tasks]) + 1, world.images
    shape = world.backbones, seeds
    wider = np.where(np.arange(world.backbones) % 5 == 0, world.noisy_backbones, 1.0)[:, None]
    common = noise(*shape)
    of_images: np.ndarray | float = 0.0
    if world.of_image:
        of_images = HARD * noise(images) + APART * noise(world.backbones, 1, images)
    samples = {}
    for task, column in enumerate(world.columns):
        order = np.arange(images) if world.of_image else rng.permutation(images)
        weights = _weights(images)[:, order]
        factor = (world.noisy_task if task == 0 else 1.0) * np.exp(rng.normal(0, world.unlike))
        is_binary = world.level != 50 or task < world.binary * world.tasks
        main: list[np.ndarray] = []
        for metric, _ in column.metrics:
            drawn = [
                np.sqrt(1 - world.of_pair) * noise(*shape)
                + np.sqrt(world.of_pair) * noise(1, seeds),
                np.sqrt(world.of_image) * of_images
                + np.sqrt(1 - world.of_image)
                * (HARD * noise(images) + APART * noise(world.backbones, 1, images))
                + INTERACTION * noise(*shape, images),
            ]
            if main:
                drawn = [
                    (each + of_main) / np.sqrt(2) for each, of_main in zip(drawn, main, strict=True)
                ]
            effects = world.effects(not main)[task]
            main = main or drawn
            moved = np.sqrt(world.of_seed) * common + np.sqrt(1 - world.of_seed) * drawn[0]
            level = world.level + effects[:, None] + world.seed * factor * wider * moved
            scores = _scores(world, level, drawn[1], is_binary, rng)
            sums = np.einsum("rn,bsn->bsr", weights, scores, optimize=True)
            resampled = sums / weights.sum(axis=1)
            for number, name in enumerate(world.names):
                values, over_images = scores[number].mean(axis=1), resampled[number].astype(float)
                sample = MetricSample(tuple(range(seeds)), values, over_images, images)
                if not world.scored:
                    sample = MetricSample(sample.seeds, values)
                own = range(world.seeds) if number else world.base_seeds or range(world.seeds)
                if world.task_seeds:
                    own = world.task_seeds[task % len(world.task_seeds)]
                samples[name, column, metric] = sample.with_seeds([*own])
    return samples


def _scores(
    world: World, level: np.ndarray, noise: np.ndarray, is_binary: bool, rng: np.random.Generator
) -> np.ndarray:
    """(backbones, seeds, images) scores of the levels (backbones, seeds)."""
    if world.level != 50:
        spread = np.sqrt(HARD**2 + APART**2 + INTERACTION**2)
        share = np.clip(level / 100, 1e-4, 1 - 1e-4)
        scores = 100.0 * (noise / spread < special.ndtri(share)[:, :, None])
    else:
        scores = noise + level[:, :, None]
        if is_binary:
            # right with a probability that grows with the score: the mean keeps its level
            threshold = rng.random((1, 1, world.images)) * 0.6 + 20 / 100
            scores = 100.0 * (threshold < 0.5 + (scores - 50) / 166)
    return scores.astype(np.float32)


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


def _truth(world: World, key: NumberKey) -> float:
    """How much better a backbone truly is than the baseline."""
    name, column, metric = key
    effects = world.effects(metric == column.main)[world.columns.index(column)]
    return float(effects[world.names.index(name)])


def check(
    judged: Judgement, samples: Mapping[NumberKey, MetricSample], world: World
) -> dict[str, list[bool]]:
    """A report's statements against the ground truth: marks, bold, mean gains, intervals."""
    result: dict[str, list[bool]] = defaultdict(list)
    truths = {key: _truth(world, key) for key in samples}

    def covers(name: str, interval: tuple[float, float], value: float) -> None:
        result[name].append(interval[0] <= value <= interval[1])

    wrong = {"main": False, "further": False, "mean": False, "bold": False}
    for key, number in judged.estimates.items():
        covers("numbers", number.interval, world.level + truths[key])
    for key, gap in judged.differences.items():
        is_main, truth = key[2] == key[1].main, truths[key]
        covers("differences", gap.interval, truth)
        if truth:
            name = "decided" if is_main else "further decided"
            result[name].append(gap.verdict() == "win")
        wrong["main" if is_main else "further"] |= _is_wrong(gap.verdict(), truth)
    for key, gain in judged.task_gains.items():
        covers("gains", gain.interval, 100 * truths[*key, "top1"] / world.level)
    for name, of_tasks in judged.gains.items():
        mean = of_tasks.mean
        effect = float(np.mean([truths[name, column, "top1"] for column in of_tasks.columns]))
        covers("mean gains", mean.interval, 100 * effect / world.level)
        if effect:
            result["mean decided"].append(mean.verdict() == "win")
        wrong["mean"] |= _is_wrong(mean.verdict(), effect)
    for column, metric in {key[1:]: None for key in samples}:
        if best := judged.best[column, metric]:
            rivals = [truths[name, column, metric] for name in world.names if name != best]
            wrong["bold"] |= truths[best, column, metric] <= max(rivals)
    result["false"].append(any(wrong.values()))
    for kind, is_wrong in wrong.items():
        result[f"false {kind}"].append(is_wrong)
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
        samples = simulate(fixed, rng)
        results.append(check(judge(samples), samples, fixed))
    return rates(results)


def run_power(
    world: World, reports: int, rng: np.random.Generator, seeds: int = 0, images: int = 0
) -> Rates:
    """How often a difference that a report calls detectable is decided in the next one, with so
    many seeds and images, by its own share of the error rate."""
    results = []
    following = replace(world, seeds=seeds or world.seeds, images=images or world.images)
    level = first_level(world.tasks, world.backbones)
    for _ in range(reports):
        plan, outcome = (judge(simulate(each, rng)) for each in (world, following))
        decided = []
        for key, gap in plan.differences.items():
            if key[2] == key[1].main:
                size = replace(gap, level=level).detectable(following.seeds, following.images)
                error = outcome.differences[key].value - _truth(world, key)
                decided.append(size + error > outcome.differences[key].reach(level))
        results.append({"power": decided})
    return rates(results)


def run_places(world: World, reports: int, rng: np.random.Generator) -> Rates:
    """How often all places of a page, over all tasks and each, contain the true ones; equal
    backbones share theirs."""
    effects = world.effects()[0]
    results = []
    for _ in range(reports):
        columns = main_samples(simulate(world, rng))
        rankings = [mean_scores(columns), *columns.values()]
        ranks = chain.from_iterable(
            each.items() for each in rank_backbones(*map(Ranking, rankings))
        )
        are_covered = all(
            rank.first <= 1 + sum(effects > effects[world.names.index(name)])
            and rank.last >= sum(effects >= effects[world.names.index(name)])
            for name, rank in ranks
        )
        results.append({"places": [are_covered]})
    return rates(results)
