"""How long much work takes and how large it gets, from how quick one device is: what ``--dry-run``
and ``estimate`` say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Images that are labelled or trained on.

    Attributes:
        images: how many; an image counts once in each epoch.
        speed: images a second of one device; None where that is not known.
    """

    images: float
    speed: float | None

    @property
    def device_hours(self) -> float | None:
        """Hours of one device; None where its speed is not known."""
        return self.images / self.speed / 3600 if self.speed else None

    def seconds(self, devices: int) -> float | None:
        """With so many devices at once, which share it without loss."""
        return self.device_hours * 3600 / devices if self.device_hours is not None else None


def duration(seconds: float) -> str:
    """A time for people."""
    size, unit = (1, "s") if seconds < 90 else (60, "min") if seconds < 5400 else (3600, "h")
    return f"{seconds / size:.{int(unit == 'h')}f} {unit}"


def scale_table(
    pairs: int, epochs: float, label: float, train: float, label_bytes: float, gpus: Sequence[int]
) -> str:
    """A Markdown table: hours of labelling and training, GPU-hours and disk, on so many GPUs.

    Args:
        pairs: how many; epochs: of the training.
        label, train: images a second of one GPU, by all experts together and in training.
        label_bytes: bytes of an image's labels.
        gpus: a row for each.
    """
    works = Work(pairs, label), Work(pairs * epochs, train)
    rows = [
        "| GPUs | labelling | training | both | GPU-hours: labelling + training | labels on disk |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for count in gpus:
        each = [work.seconds(count) or 0.0 for work in works]
        hours = " + ".join(f"{work.device_hours or 0.0:.0f}" for work in works)
        told = " | ".join(duration(seconds) for seconds in (*each, sum(each)))
        rows.append(f"| {count} | {told} | {hours} | {pairs * label_bytes / 1e9:.1f} GB |")
    return "\n".join(rows)
