"""The detection probes: Mask R-CNN and SSD through MMDetection, scored by COCO's rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.base import Context, Probe, TaskResult
from probes.detection.settings import STATS, MaskRCNNSettings, SSDSettings
from probes.registry import register_probe
from reports.per_image import SCORERS, ImageScores
from reports.records import Metric


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
        from probes.detection.coco import draw_preview
        from probes.detection.models import detection_config
        from probes.train.loop import config_text, note_tuning, run_training

        data = context.data
        config = detection_config(self, context)
        trainer = run_training(config, context, f"{data.spec.name}/{self.name}")
        (scores,) = trainer.evaluator.metrics
        names = {sample.target.image_id: sample.image for sample in data.samples["val"]}
        if sorted(scores.image_ids) != sorted(names):
            raise RuntimeError("the images that were scored are not those of val")
        context.cost.add(trainer.cost)
        notes, train = [*note_tuning(trainer), *trainer.notes], trainer.train_dataset
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
