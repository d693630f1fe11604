"""MTEB's own evaluation, on tasks of its own form."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import backbones
from tests.backbones.bridges.conftest import TOLERANCE, difference, ours

mteb = pytest.importorskip("mteb")
mocks = pytest.importorskip("mteb.mocks")

from datasets import Dataset, DatasetDict  # noqa: E402

pytestmark = pytest.mark.integration


def record(encoder) -> list[torch.Tensor]:
    """What the encoder will have returned to MTEB."""
    outputs, encode = [], encoder.encode

    def recording(*args, **kwargs) -> torch.Tensor:
        outputs.append(encode(*args, **kwargs))
        return outputs[-1]

    encoder.encode = recording
    return outputs


def run(encoder, task) -> float:
    """The main score by ``mteb.evaluate``."""
    results = mteb.evaluate(
        encoder,
        task,
        cache=None,
        encode_kwargs={"batch_size": 3},
        co2_tracker=False,
        show_progress_bar=False,
    )
    return results.task_results[0].get_score()


def with_pictures(task, pictures):
    """The mock task with three classes on these images."""
    images = [Image.open(path) for path in pictures]
    task.dataset = DatasetDict(test=Dataset.from_dict({"image": images, "label": [0, 1, 0]}))
    task.data_loaded = True
    return task


def test_zero_shot_has_our_embeddings_of_images_and_of_texts(pictures, clip_weights):
    encoder = backbones.as_mteb("cliptex", device="cpu", weights=clip_weights)
    outputs = record(encoder)
    task = with_pictures(mocks.MockZeroShotClassificationTask(), pictures)
    assert 0 <= run(encoder, task) <= 1
    backbone = backbones.create("cliptex", weights=clip_weights)
    texts, images = outputs
    assert difference(backbone.encode_text(task.get_candidate_labels()), texts) <= TOLERANCE
    assert difference(ours(backbone, pictures), images) <= TOLERANCE


@pytest.mark.parametrize(
    "task",
    [
        "MockAny2AnyRetrievalT2ITask",
        "MockAny2AnyRetrievalI2TTask",
        "MockImageTextPairClassificationTask",
        "MockImageClassificationTask",
        "MockImageClusteringFastTask",
    ],
)
def test_tasks_of_images_and_texts_run(task, clip_weights):
    encoder = backbones.as_mteb("cliptex", device="cpu", weights=clip_weights)
    assert 0 <= run(encoder, getattr(mocks, task)()) <= 1


def test_without_a_text_tower_image_tasks_run_and_others_are_refused(pictures):
    encoder = backbones.as_mteb("random/timm/resnet18", device="cpu")
    assert 0 <= run(encoder, mocks.MockImageClassificationTask()) <= 1
    with pytest.raises(ValueError, match="supports \\['image'\\]"):
        run(encoder, with_pictures(mocks.MockZeroShotClassificationTask(), pictures))


def test_results_of_other_weights_are_other_results():
    """MTEB finds stored results by name and revision."""
    first, same, changed = (
        backbones.as_mteb("random/timm/resnet18", seed=seed).mteb_model_meta for seed in (0, 0, 1)
    )
    assert first == same and first.name == changed.name
    assert first.revision != changed.revision
