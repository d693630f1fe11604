"""The detection probes: Mask R-CNN and SSD through MMDetection, scored by COCO's rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.base import Context, Probe, TaskResult
from probes.detection.settings import STATS, MaskRCNNSettings, SSDSettings
from probes.registry import register_probe
from reports.per_image import SCORERS, ImageScores
from reports.records import Metric

if TYPE_CHECKING:
    from probes.select import Choice


@dataclass
class DetectionProbe(Probe):
    """A detector on the maps of a frozen backbone; see ``probes.base.Probe``."""

    name: str
    settings_type: type
    metrics: Mapping[str, Metric]
    kind: str = "detection"
    version: int = 3

    def config(self, context: Context) -> str:
        """The resolved MMEngine config; it runs with plain mmengine."""
        from probes.detection.models import detection_config
        from probes.train.loop import config_text

        return config_text(None, context, lambda used: detection_config(self, used))

    def run(self, context: Context) -> TaskResult:
        """Train the detector on ``train`` and score ``val`` by COCO's rules."""
        from probes.detection.models import detection_config
        from probes.detection.pictures import draw_preview
        from probes.select import rates_of
        from probes.train.loop import config_text, note_tuning, run_training

        data, rate_notes = context.data, list[str]()
        if context.head is None and len(rates_of(context.settings)) > 1:
            context, rate_notes = self._with_best_rate(context)
        config = detection_config(self, context)
        trainer = run_training(config, context, f"{data.spec.name}/{self.name}")
        (scores,) = trainer.evaluator.metrics
        names = {sample.target.image_id: sample.image for sample in data.samples["val"]}
        if sorted(scores.image_ids) != sorted(names):
            raise RuntimeError("the images that were scored are not those of val")
        context.cost.add(trainer.cost)
        notes = [*note_tuning(trainer), *rate_notes, *trainer.notes]
        train = trainer.train_dataset
        if dropped := train.dropped_empty:
            notes.append(
                f"{dropped} of {dropped + len(train)} training images have no object and were left"
                " out of training"
            )
        missing = [name for name in self.metrics if name not in trainer.metrics]
        if missing:
            notes.append(f"val has no object of that size, so there is no {', '.join(missing)}")
        counts = Counter(detection["image_id"] for detection in scores.detections)
        return TaskResult(
            metrics=trainer.metrics,
            per_image={
                "image": np.array([names[image] for image in scores.image_ids]),
                "image_id": np.array(scores.image_ids, dtype=np.int64),
                "detections": np.array([counts[i] for i in scores.image_ids], dtype=np.int64),
                "objects": scores.class_objects.sum(axis=1),
                "class_objects": scores.class_objects,
            },
            detections=scores.detections,
            preview=draw_preview(
                context.work_dir / "preview.png",
                data.root,
                scores.ann_file,
                names,
                scores.detections,
                scores.masks,
            ),
            head=trainer.head(),
            notes=notes,
            config=config_text(config, context, lambda used: detection_config(self, used)),
        )

    def _with_best_rate(self, context: Context) -> Choice:
        """``context`` with the rate of the backbone that is best on a held-out tenth of train, when
        the rest is trained on: one network after the other.

        Raises:
            Exception: what all trainings failed with.
        """
        from probes.detection.models import detection_config
        from probes.select import contexts_of_rates, held_out_by_content, select_rate
        from probes.train.loop import HeadTrainer, train_together

        data, every = context.data, context.data.encoded("train")
        held_out = [every[item] for item in held_out_by_content(context)]
        names = {sample.image for sample in held_out}
        rest = [sample for sample in data.samples["train"] if sample.image not in names]
        # what is cached is of all images, as for the training after the choice
        part = replace(data, samples={**data.samples, "train": rest}, full_train=tuple(every))
        trained: dict[float, HeadTrainer | Exception] = {}
        for rate, of_rate in contexts_of_rates(replace(context, data=part)).items():
            head = {rate: (detection_config(self, of_rate, held_out), of_rate)}
            trained |= train_together(head, description=f"{data.spec.name}/{self.name}: rates")
            if isinstance(result := trained[rate], HeadTrainer):
                result.discard()
                result.evaluator.metrics.clear()  # with all detections
        choice = select_rate(self, context, trained, len(held_out))
        if isinstance(choice, Exception):
            raise choice
        return choice


BOXES, MASKS = (
    {
        f"{kind}_{name}": Metric(label=f"{word} {name.replace('_', ' ')}", shown=name == "mAP")
        for name in STATS
    }
    for kind, word in (("bbox", "box"), ("segm", "mask"))
)

register_probe(DetectionProbe("mask-rcnn", MaskRCNNSettings, {**BOXES, **MASKS}))
register_probe(DetectionProbe("ssd", SSDSettings, BOXES))


def _image_scores(*scores: Any) -> ImageScores | None:
    from probes.detection.average_precision import detection_scores

    return detection_scores(*scores)


SCORERS.register("detection", _image_scores)
