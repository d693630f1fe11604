"""Where memory ends, what a larger batch has taken is free for the smaller ones. (The contract over
all probes: the work goes on; ``train/test_out_of_memory.py``: a head that does not fit.)"""

from __future__ import annotations

import numpy as np
import pytest

from probes.registry import PROBES
from tests.accelerator.cases.tasks import make_task, small
from tests.accelerator.pretended.counters import MEMORY, memory_limit
from tests.probes import tiny_dense

CACHED = {"fixed_crops": 2, "cache": "fp16"}


@pytest.mark.parametrize("changes", [{}, CACHED], ids=["images", "cached"])
def test_evaluation_goes_on_in_smaller_batches(changes, pretended, tmp_path):
    probe = PROBES["segmentation/linear"]
    data = tiny_dense.make(tmp_path / "data", "segmentation", val=4, size=(96, 128))
    context = make_task(probe, tmp_path / "work", pretended, data, small(probe, changes))
    complete, live = probe.run(context), MEMORY.live
    MEMORY.reset_peak()
    probe.run(context)  # it is trained: only evaluated
    with memory_limit(live + int(0.8 * (MEMORY.peak - live))):
        halved = probe.run(context)
    assert any(note.startswith("evaluation: ") for note in context.cost.notes)
    for name, values in complete.per_image.items():
        np.testing.assert_array_equal(halved.per_image[name], values)
