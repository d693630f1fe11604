"""What the mini suites make for themselves: the world, and on it CLIP, the experts, labels of the
experts and manual ones, CLIP-FT and CLIPTeX.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import partial, wraps
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from backbones.backbone import Backbone
from backbones.cliptex.experts.fit import EXPERT_VERSION
from backbones.cliptex.labelling import LABELLING_VERSION, LabelSettings, ManualLabels, make_labels
from backbones.cliptex.labels import MANIFEST, LabelStore
from backbones.cliptex.model import load_initial_clip
from backbones.cliptex.pairs import open_pairs
from backbones.cliptex.recipes import Recipe, find_recipe
from benchmark.executor import Executor, Priority, exclusive
from benchmark.mini import world
from benchmark.mini.solids import draw_picture
from benchmark.mini.world import (
    LABELLED,
    NAMES,
    SIZES,
    TRAINED,
    VOC,
    WorldConfig,
    build_world,
    dense_files,
    is_complete,
)
from benchmark.progress import reporter
from benchmark.stages import (
    ExpertTraining,
    LabelRequest,
    TrainedWeights,
    Training,
    find_labels,
    find_weights,
    label_pairs,
    make_expert,
    open_labels,
    train_weights,
)
from benchmark.suites import BackboneSource, NotMade
from cliptex_common.files import content_key, home, mark_in_use
from cliptex_common.images import AXES
from cliptex_common.process import return_freed_memory
from reports.tracking import Tracker

MANUAL_SHARE = 0.1  # of the pairs, the first ones: their order has no meaning
GROUND_TRUTH_FOLDERS = {  # task → where the official layouts have its ground truth
    "seg": f"{VOC}/SegmentationClass",
    "depth": "nyu/annotations/train",
    "normal": "nyu/normals/train",
}


def write_manual_labels(config: WorldConfig, pairs: str, out: Path) -> None:
    """Write the store ``out`` of labels as people would draw them, the exact ground truth of a part
    of the pairs, unless it exists; a unit of work.

    The scenes are rendered again, because the world keeps no ground truth of its pairs.
    """
    with exclusive(out), TemporaryDirectory() as folder:
        progress = reporter()
        if (out / MANIFEST).is_file():
            return
        count = round(MANUAL_SHARE * config.pairs)
        progress.start("drawing manual labels", count)
        for index in range(count):
            *_, target = draw_picture(Random(f"{config.seed}/pairs/{index}"), "home", config.size)
            for name, content in dense_files("train", f"{index:09d}", b"", target).items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            progress.advance()
        manual = [
            ManualLabels(task, Path(folder, files), NAMES if task == "seg" else ())
            for task, files in GROUND_TRUTH_FOLDERS.items()
        ]
        make_labels(open_pairs(pairs), manual, out, LabelSettings(label_side=0), progress)


Method = TypeVar("Method", bound=Callable[..., Coroutine[Any, Any, Any]])


def once(title: str) -> Callable[[Method], Method]:
    """Run a coroutine method once for its arguments, however many await it.

    Args:
        title: of the work, with the arguments as ``{}``, for ``NotMade``.
    """

    def decorate(method: Method) -> Method:
        @wraps(method)
        async def result(self: MiniPipeline, *arguments: Any) -> Any:
            key = (method.__name__, *arguments)
            if key not in self.results:
                work = _titled(method(self, *arguments), title.format(*arguments))
                self.results[key] = asyncio.ensure_future(work)
            return await self.results[key]

        return result  # type: ignore[return-value]

    return decorate


async def _titled(work: Awaitable[Any], title: str) -> Any:
    """The result of ``work``; if it raises ``NotMade``, ``title`` is added to the titles."""
    try:
        return await work
    except NotMade as error:
        raise NotMade(*error.titles, title) from None
    finally:
        return_freed_memory()  # of models that were loaded to look for finished work


class MiniPipeline:
    """The pipeline of a mini suite, as ``benchmark.suites.Pipeline`` says.

    Args:
        executor: None looks up what exists.
        experiment: in MLflow.
    """

    def __init__(self, suite: str, executor: Executor | None, experiment: str) -> None:
        self.sizes = SIZES[suite]
        self.executor, self.experiment = executor, experiment
        self.root = home() / "mini" / self.sizes.world.key()
        self.pairs = str(self.root / "pairs")
        self.data: Mapping[str, Path] = {
            spec.name: self.root / spec.folder for spec in world.DATASETS
        }
        self.experts = {name: self._expert_training(name) for name in self.sizes.experts}
        self.results: dict[tuple[Any, ...], asyncio.Future[Any]] = {}

    def trains(self, name: str) -> bool:
        return name in TRAINED

    def architecture(self) -> Backbone:
        settings = self.sizes.clip
        return load_initial_clip(
            "random", settings["model"], image_size=settings.get("image_size", 0)
        )

    @once("render the mini world")
    async def make_data(self) -> None:
        if self.executor is not None:
            await build_world(self.sizes.world, self.executor)
        elif not is_complete(self.root, self.sizes.world):
            raise NotMade

    @once("train expert {}")
    async def expert(self, name: str) -> dict[str, Any]:
        """The ``expert.json`` of an expert."""
        await self.make_data()
        training = self.experts[name]
        self._mark_in_use(training.out)
        return training.find() or await make_expert(
            training, self._need_executor(), Priority.PREPARATION
        )

    @once("label the pairs")
    async def labels(self) -> LabelStore:
        """The experts' labels of the pairs."""
        await self._experts()
        request = LabelRequest(
            pairs=self.pairs,
            experts=tuple(f"{name}={training.out}" for name, training in self.experts.items()),
            name=self.root.name,
            settings=LabelSettings(input_side=0, label_side=0),
            batch_size=128,
            experiment=self.experiment,
            priority=Priority.PREPARATION,
        )
        if self.executor is not None:
            return await label_pairs(request, self.executor)
        if store := find_labels(request):
            return store
        raise NotMade

    @once("draw manual labels")
    async def manual_labels(self) -> LabelStore:
        """Labels of a part of the pairs, as people would draw them."""
        await self.make_data()
        key = content_key([self.root.name, MANUAL_SHARE, LABELLING_VERSION], 8)
        path = home() / "labels" / f"{self.root.name}-manual-{key}"
        self._mark_in_use(path)
        if not (path / MANIFEST).is_file():
            arguments = self.sizes.world, self.pairs, path
            await self._need_executor().run(
                write_manual_labels,
                *arguments,
                name="manual labels",
                kind="label",
                priority=Priority.PREPARATION,
                on_device=False,
            )
        return LabelStore(path)

    @once("train {} · seed {}")
    async def weights(self, name: str, seed: int) -> BackboneSource:
        """A backbone with what its training, and the labels that it learnt from, cost."""
        recipe = self._recipe(name, seed)
        weights = await self.train(recipe)
        cost = Counter(weights.train_cost)
        makers = self._label_makers(recipe)
        stores = await self._all(makers.values())
        costs = [("label", store.manifest["cost"]) for store in stores]
        if "experts" in makers:
            costs += [("experts", expert) for expert in await self._experts()]
        for subject, values in costs:  # label_seconds, label_flops, experts_seconds …
            cost.update({f"{subject}_{kind}": values[kind] for kind in ("seconds", "flops")})
        arguments = {
            "name": name,
            "weights": str(weights.path),
            "seed": seed,
            "any_architecture": True,
        }
        return BackboneSource(arguments, weights.run, dict(cost))

    async def train(self, recipe: Recipe, parent: str = "") -> TrainedWeights:
        """The weights of a recipe; all but ``clip`` start from the CLIP of its seed. Not ``once``:
        finished weights are found by the recipe's identity."""
        init, labels = self.sizes.init, ()
        if recipe.name == "clip":
            await self.make_data()
        else:
            clip_of_seed = partial(self.weights, "clip", recipe.seed)
            clip, *stores = await self._all([clip_of_seed, *self._label_makers(recipe).values()])
            init = clip.create_arguments["weights"]
            labels = tuple(store.root for store in stores)
        store = open_labels(labels)
        identity = {
            "recipe": recipe.identity(),
            "init": Path(init).name,
            "labels": store.identity if store else "",
        }
        file = (
            f"{self.root.name}-{recipe.name}-s{recipe.seed}-{content_key(identity, 8)}.safetensors"
        )
        path = home() / "weights" / file
        inputs = Training(
            recipe,
            init,
            self.pairs,
            path,
            labels,
            experiment=self.experiment,
            parent=parent,
        )
        self._mark_in_use(path)
        weights = find_weights(inputs, Tracker(self.experiment) if self.executor else None)
        if weights is not None:
            return weights
        priorities = {"clip": Priority.PREPARATION, "clip-ft": Priority.TRAINING}
        priority = priorities.get(recipe.name, Priority.LONG_TRAINING)
        if parent:  # a trial's, after the probes of others
            priority = Priority.DEFAULT
        return await train_weights(inputs, self._need_executor(), priority)

    async def _experts(self) -> list[dict[str, Any]]:
        return await self._all(partial(self.expert, name) for name in self.experts)

    async def _all(self, makers: Iterable[Callable[[], Awaitable[Any]]]) -> list[Any]:
        """The results of all; one ``NotMade`` has the titles of all that do not exist."""
        work = [make() for make in makers]
        # with an executor the first error ends the work, without one all that is missing is named
        results = await asyncio.gather(*work, return_exceptions=self.executor is None)
        titles: list[str] = []
        for result in results:
            if isinstance(result, NotMade):
                titles += result.titles
            elif isinstance(result, BaseException):
                raise result
        if titles:
            raise NotMade(*titles)
        return results

    def _need_executor(self) -> Executor:
        """The executor; without one, what needs it is ``NotMade``."""
        if self.executor is None:
            raise NotMade
        return self.executor

    def _mark_in_use(self, path: Path) -> None:
        if self.executor is not None:
            mark_in_use(path)

    def _expert_training(self, name: str) -> ExpertTraining:
        settings = self.sizes.experts[name]
        folder = f"{self.root.name}-{name}-{content_key([AXES, EXPERT_VERSION, settings], 8)}"
        out = home() / "experts" / folder
        return ExpertTraining(name, self.root / "expert", out, settings, experiment=self.experiment)

    def _recipe(self, name: str, seed: int) -> Recipe:
        settings = self.sizes.clip if name == "clip" else self.sizes.tune
        if name not in ("clip", "clip-ft"):
            settings = {**settings, **self.sizes.lambdas}
        recipe = find_recipe("cliptex" if name in LABELLED else name)
        return recipe.changed({**settings, "name": name, "seed": seed})

    def _label_makers(self, recipe: Recipe) -> dict[str, Callable[[], Awaitable[Any]]]:
        """Source → what makes its labels, of all that a recipe learns from; the first source that
        has labels of a pair counts."""
        # the variants of cliptex whose names say what they learn from; others learn from experts
        sources = {"cliptex-manual": ["manual"], "cliptex-both": ["manual", "experts"]}
        makers: dict[str, Callable[[], Awaitable[Any]]] = {
            "manual": self.manual_labels,
            "experts": self.labels,
        }
        names = sources.get(recipe.name, ["experts"]) if recipe.tasks else []
        return {name: makers[name] for name in names}
