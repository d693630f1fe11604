"""Faults that somebody may make, and the tests that must see them."""

from __future__ import annotations

from dataclasses import dataclass

CONTRACT = "tests/probes/test_contract.py::test_"
RESUMED = CONTRACT + "stopped_and_resumed_it_ends_the_same"
STORED = CONTRACT + "stored_features_give_the_same_numbers_and_serve_every_seed"
FEWER = CONTRACT + "of_fewer_images_each_is_scored_as_before"
PREDICTED = CONTRACT + "its_stored_head_predicts_what_was_scored"
MEMORY = CONTRACT + "with_half_the_memory_it_goes_on"
SHARE = CONTRACT + "a_share_of_train_gives_what_a_dataset_of_its_images_gives"
RUNS = CONTRACT + "it_runs_and_leaves_the_backbone_as_it_was"


@dataclass(frozen=True)
class Fault:
    """A change of the source that breaks a promise.

    Attributes:
        about: what is wrong then.
        file: where, from the root of the checkout.
        old, new: the text that is replaced, which the file has once.
        tests: of pytest, one of which must fail.
    """

    about: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


LOOP, LINEAR = "probes/train/loop.py", "probes/image_level/linear.py"
DENSE, TUNED, CROPS = "[segmentation/linear]", "[segmentation/linear tune]", " random_crops]"
FAULTS = (
    Fault(
        "a training resumes without its optimizer's state",
        LOOP,
        'self.optim_wrapper.load_state_dict(state["optimizer"])',
        "pass",
        (RESUMED + DENSE,),
    ),
    Fault(
        "a training that was stopped begins anew",
        LOOP,
        "state = load_state(Path(self.context.work_dir, STATE_FILE), self.key, warn)",
        "state = None",
        (RESUMED + DENSE,),
    ),
    Fault(
        "a resumed training takes other samples",
        LOOP,
        "sampler.skip(iteration * loader.batch_size)",
        "sampler.skip(iteration)",
        (RESUMED + DENSE,),
    ),
    Fault(
        "a resumed training forgets its moving average",
        LOOP,
        'self.average.load(state.get("average", ()))',
        "pass",
        (RESUMED + TUNED,),
    ),
    Fault(
        "first weights do not follow from the seed",
        LOOP,
        "with isolated_rng(context.seed % 2**32):",
        "with isolated_rng():",
        (RESUMED + DENSE,),
    ),
    Fault(
        "augmentation does not follow from the seed",
        "probes/train/sampling.py",
        'with isolated_rng(derive_seed("sample", self.seed, number)):',
        "if True:",
        (RESUMED + DENSE,),
    ),
    Fault(
        "a stored head is scored without its weights",
        LOOP,
        "context.head.load_into(self.model)",
        "pass",
        (FEWER + DENSE,),
    ),
    Fault(
        "an evaluation that does not fit the memory fails",
        LOOP,
        "if not too_large_for or count == 1:",
        "if True:",
        (MEMORY + DENSE,),
    ),
    Fault(
        "a share of train is trained on all of it",
        LOOP,
        "leave_out = sorted({*leave_out, *unused_items(train.datasets[0], context.data)})",
        "leave_out = sorted(leave_out)",
        (SHARE + DENSE,),
    ),
    Fault(
        "a share of train has the features of other images",
        "probes/image_level/encode.py",
        "return embeddings[list(used)] if used else embeddings",
        "return embeddings[: len(used)] if used else embeddings",
        (SHARE + "[classification/knn]",),
    ),
    Fault(
        "a head that is ahead of its group takes a step with it",
        LOOP,
        "if each.trains and each.iteration == iteration]",
        "if each.trains]",
        ("tests/probes/train/test_together.py::test_killed_and_resumed_each_ends_as_alone",),
    ),
    Fault(
        "a cached mirror image is an upright one",
        "probes/detection/coco.py",
        'item = idx * len(self.flips) + self.flips.index(bool(sample.get("flip", False)))',
        "item = idx * len(self.flips)",
        (STORED + "[detection/mask-rcnn]",),
    ),
    Fault(
        "an image that is left out is scored",
        "probes/dense/dataset.py",
        "not in self.exclude",
        "not in ()",
        (FEWER + DENSE,),
    ),
    Fault(
        "of cached crops the first one alone is drawn",
        "probes/dense/dataset.py",
        "+ self.crops.index(self._draw_crop())",
        "",
        (STORED + DENSE,),
    ),
    Fault(
        "features are encoded for each run",
        "probes/features/store.py",
        "return root() / self.digest",
        'return root() / f"{self.digest}{id(self)}"',
        (STORED + DENSE, STORED + "[classification/knn]"),
    ),
    Fault(
        "a tier trains the backbone that all tasks share",
        "backbones/tuning.py",
        "self.backbone: Backbone = copy.deepcopy(self.original)",
        "self.backbone: Backbone = self.original",
        (RUNS + TUNED,),
    ),
    Fault(
        "detections are ranked from the lowest score in reports",
        "probes/detection/average_precision.py",
        "np.lexsort((identity, -score, self.label))",
        "np.lexsort((identity, score, self.label))",
        ("tests/probes/detection/test_average_precision.py",),
    ),
    Fault(
        "a predictor has an untrained head",
        "probes/predictor.py",
        "head.load_into(self.model)",
        "pass",
        (PREDICTED + DENSE,),
    ),
    Fault(
        "random crops do not follow from the seed",
        LINEAR,
        'torch.default_generator.manual_seed(derive_seed("crop", self.seed, item))',
        "torch.default_generator.seed()",
        (RESUMED + "[multi-label/linear" + CROPS,),
    ),
    Fault(
        "heads on random crops resume without momentum",
        LINEAR,
        'optimizer.load_state_dict(state["optimizer"])',
        "pass",
        (RESUMED + "[multi-label/linear" + CROPS, RESUMED + "[classification/attentive]"),
    ),
    Fault(
        "a stored classifier has no bias",
        LINEAR,
        '"bias": heads.biases[number],',
        '"bias": torch.zeros_like(heads.biases[number]),',
        (PREDICTED + "[classification/linear]", FEWER + "[multi-label/linear]"),
    ),
    Fault(
        "a stored classifier reads features that are not standardised",
        LINEAR,
        "heads = cls(Standardiser(mean, scale), [weight], columns)",
        "heads = cls(Standardiser.identity(len(mean)), [weight], columns)",
        (PREDICTED + "[multi-label/linear]",),
    ),
    Fault(
        "a tuned classifier resumes without its optimizer's state",
        "probes/image_level/tuned.py",
        'optimizer.load_state_dict(state["optimizer"])',
        "pass",
        (RESUMED + "[multi-label/linear tune]",),
    ),
    Fault(
        "encoding ends where a batch does not fit the memory",
        "cliptex_common/device.py",
        "            elif len(part) == 1:\n                raise failure",
        "            elif part is not None:\n                raise failure",
        (MEMORY + "[classification/knn]",),
    ),
    Fault(
        "an MLP of poses begins with other weights each time",
        "probes/matching/poses.py",
        'torch.manual_seed(derive_seed("relative-pose", context.seed))',
        "pass",
        (RESUMED + "[view-pose/relative-pose]",),
    ),
    Fault(
        "warps differ each time",
        "probes/matching/homographies.py",
        'derive_seed("homography", content_hash(path))',
        "int(torch.randint(2**31, ()))",
        (RESUMED + "[warped-images/homography]",),
    ),
    Fault(
        "patches that are remembered differ each time",
        "probes/dense/patches/memory.py",
        'derive_seed("memory", context.seed, *key)',
        "int(torch.randint(2**31, ()))",
        ("tests/probes/dense/patches/test_patches.py::test_the_memory_is_sampled_by_the_seed",),
    ),
)
