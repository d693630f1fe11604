"""The dense probes: semantic segmentation, depth and surface normals, each with a linear, a DeepLabv3 and a PSPNet
head, depth and normals with probe3d's DPT head too.

One config is generated for all of them: mmseg's encoder-decoder over the frozen backbone, whose maps are brought to one
stride and concatenated. What differs between kinds is the objective, the truth and the scores; what differs between
probes is the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backbones.files import content_key
from probes.base import Context, TaskResult
from probes.datasets.base import Kind, Split
from probes.dense.settings import SETTINGS
from probes.registry import register_probe
from probes.runner.lockstep import Steps, drain

if TYPE_CHECKING:
    from probes.runner.stream import Seat

PROBES = ("linear", "deeplabv3", "pspnet")


METRICS: Mapping[Kind, Mapping[str, int]] = {
    "segmentation": {"mIoU": 1, "mAcc": 1, "aAcc": 1},
    "depth": {"abs_rel": -1, "rmse": -1, "log10": -1, "delta1": 1, "delta2": 1, "delta3": 1},
    "normals": {
        "normal_mean": -1,
        "normal_median": -1,
        "normal_11.25": 1,
        "normal_22.5": 1,
        "normal_30": 1,
        "normal_image_mean": -1,
    },
}


@dataclass
class DenseProbe:
    """A dense probe; see ``probes.base.Probe``."""

    name: str
    kind: Kind
    settings_type: type
    metrics: Mapping[str, int]
    version: int = 3
    needs_text: bool = False
    splits: tuple[Split, ...] = ("train", "val")

    def config(self, context: Context) -> str:
        """The resolved MMEngine config; it runs with plain mmengine. With ``lr_grid`` that of the first rate."""
        from probes.dense.config import dense_config
        from probes.dense.lr_grid import held_out, with_rate
        from probes.runner.training import resolved

        if rates := context.settings.lr_grid:
            context = with_rate(context, rates[0])
            return resolved(dense_config(self, context, held_out(context)), context).pretty_text
        return resolved(dense_config(self, context), context).pretty_text

    def family(self, context: Context) -> str | None:
        """The same for probes that read the same batches: of one backbone's features if they are kept, else of one dataset."""
        from probes.dense.config import dense_config
        from probes.dense.lr_grid import held_out
        from probes.features.precompute import features_key

        settings = context.settings
        config = dense_config(self, context, held_out(context) if settings.lr_grid else frozenset())
        if settings.cache != "none":
            return content_key([features_key(config, context), settings.batch_size, context.seed])
        encoder = [config.model.backbone.to_dict(), config.model.data_preprocessor.to_dict()]
        return content_key([config.train_dataloader.to_dict(), encoder, context.backbone.identity(), context.seed])

    def run(self, context: Context) -> TaskResult:
        """All of ``steps`` at once."""
        return drain(self.steps(context))

    def steps(self, context: Context, seat: Seat | None = None) -> Steps[TaskResult]:
        """Train the head on ``train`` and score ``val`` at the resolution of its labels.

        Raises:
            UserError: the dataset or the settings do not fit the probe.
            NonFiniteLoss: training broke.
        """
        from probes.dense.config import dense_config
        from probes.dense.constant import constant_note
        from probes.dense.preview import draw_preview
        from probes.runner.training import training_steps

        notes, cost, held, encoding = list[str](), dict[str, float](), frozenset[str](), None
        if context.settings.lr_grid:
            from probes.dense.lr_grid import choose

            choice = yield from choose(self, context, seat)
            context, held, notes, cost = choice.context, choice.held, choice.notes, choice.cost
            encoding = choice.encoding
        config = dense_config(self, context, held)
        if context.settings.cache != "none":
            from probes.features.precompute import provide

            more, encoding = provide(config, context, encoding)
            notes += more
        trained = yield from training_steps(config, context, description=self.title(context), seat=seat)
        (scores,) = trained.evaluators
        scored, expected = list(scores.per_image["image"]), [sample.image for sample in context.data.samples["val"]]
        if scored != expected:
            raise RuntimeError(f"{len(scored)} images were scored, not the {len(expected)} of the split in their order")
        speeds = {name: value for name, value in {**trained.cost, **cost}.items() if name.endswith("per_second")}
        sums = {name: value + cost.get(name, 0.0) for name, value in trained.cost.items()}  # of all heads of a grid
        costs = {**cost, **sums, **speeds}
        metrics = {name: trained.metrics[name] for name in self.metrics}
        beaten = constant_note(self, context.data, config.val_evaluator, metrics, scores.per_image)
        return TaskResult(
            metrics=metrics,
            per_image=scores.per_image,
            panel=draw_preview(trained.model, trained.val_dataset, self.kind, context.work_dir / "panel.png"),
            config=trained.config,
            cost=encoding.added_to(costs) if encoding else costs,
            notes=[*scores.notes, *beaten, *notes],
        )

    def title(self, context: Context) -> str:
        """The task's name."""
        return f"{context.data.spec.name}/{self.name}"


for _kind, _settings in SETTINGS.items():
    for _name in (*PROBES, *(["dpt"] if _kind != "segmentation" else [])):
        register_probe(DenseProbe(_name, _kind, _settings, METRICS[_kind]))
