"""The suites of real datasets, from ``paper`` to ``imagenet-shifts``. Importing this registers
every dataset, probe and suite, those of the mini world too, and imports nothing that computes.

Settings are these suites' own, also where a model card does not say how a number was made; those of
published protocols are presets: ``--set protocol=NAME``, see ``list protocols``.
"""

from __future__ import annotations

import benchmark.mini.suite  # noqa: F401  registered first, it is the default suite
import probes.catalog  # noqa: F401
from benchmark.suites import Suite, cross, register_suite
from probes.datasets.webdataset import DATACOMP, VTAB

# isort: split


COMPARED = ("clip", "clip-ft", "cliptex")
DENSE_PROBES = ("linear", "deeplabv3", "pspnet")
# The frozen backbone computes in bf16 on a GPU that does, else in fp32; heads, losses and scores
# always in fp32. ``--set precision=fp32`` and ``=bf16`` decide it.
ENCODER = {"precision": "auto"}

register_suite(
    Suite(
        name="paper",
        about="the tasks of the CLIPTeX paper on real datasets (give --data-root)",
        tasks={
            **cross(["voc", "ade20k"], DENSE_PROBES, **ENCODER),
            **cross(["coco"], ["ssd", "mask-rcnn"], **ENCODER),
            **cross(["nyu-depth", "nyu-normal"], DENSE_PROBES, **ENCODER),
            **cross(["imagenet", "places365"], ["linear"], **ENCODER),
            **cross(["imagenet"], ["zero-shot"], **ENCODER),
            **cross(["flickr30k"], ["retrieval"], **ENCODER),
        },
        unlisted={"": ENCODER},
        default_backbones=COMPARED,
    )
)

# enough to compare checkpoints with each other, not with the suite paper
SHORT = {**ENCODER, "max_iters": 2000, "lr": 1e-3}

register_suite(
    Suite(
        name="companion",
        about="quick tasks for `watch`: short linear probes, zero-shot and retrieval",
        tasks={
            **cross(["voc", "nyu-depth"], ["linear"], **SHORT),
            **cross(["imagenet"], ["zero-shot"], **ENCODER),
            **cross(["flickr30k"], ["retrieval"], **ENCODER),
        },
        unlisted={"": ENCODER, "voc": SHORT, "nyu-depth": SHORT},
    )
)


register_suite(
    Suite(
        name="own",
        about="your own data: examples of one-file datasets (place each with --data NAME=DIR)",
        tasks={
            **cross(["camvid"], DENSE_PROBES),
            **cross(["imagefolder"], ["linear", "zero-shot"]),
            **cross(["flickr8k"], ["retrieval"]),
        },
        default_backbones=("efficientnet-lite0", "random"),
        any_dataset=True,
    )
)


SEGMENTATION = ("patch-knn", "in-context", "logreg", "open-vocabulary", "linear")

register_suite(
    Suite(
        name="dense",
        about="segmentation without training (k-NN, in context, L-BFGS, class texts) and linear"
        " probes, on the datasets that are present",
        tasks={
            **cross(["voc", "ade20k"], SEGMENTATION, **ENCODER),
            **cross(["coco-stuff"], ["open-vocabulary"], **ENCODER),
            **cross(["nyu-depth", "nyu-normal"], ["linear"], **ENCODER),
        },
        unlisted={"": ENCODER},
        default_backbones=COMPARED,
        skips_absent_data=True,
    )
)


PROFILE = {
    **ENCODER,
    "layers": ("25%", "50%", "75%", "100%"),
    "size": (224, 448, 672),
    "memory": 10_000,
}
NEIGHBOURS = {"neighbours": (10, 30), "distances": ("cosine",)}

register_suite(
    Suite(
        name="profile",
        about="which layer, which resolution: k-NN of patches at four depths × three sizes, on 24"
        " images of each dataset that is present",
        tasks=cross(["camvid", "voc", "ade20k"], ["patch-knn"], **PROFILE, **NEIGHBOURS),
        unlisted={"": PROFILE},
        default_backbones=COMPARED,
        skips_absent_data=True,
        images=24,
    )
)


# beside -A, -R and ObjectNet the images of ImageNet's val of the same classes
IMAGENET_SETS = (
    "imagenet",
    "imagenetv2",
    "imagenet-real",
    "imagenet_sketch",
    "imagenet-a",
    "imagenet-val-a",
    "imagenet-r",
    "imagenet-val-r",
    "objectnet",
    "imagenet-val-objectnet",
    "imagenet-c",
)

register_suite(
    Suite(
        name="robustness",
        about="heads of ImageNet on V2, A, R, Sketch, ObjectNet, ReaL, C; calibration, OOD",
        tasks={
            **cross(IMAGENET_SETS, ["linear", "knn"], **ENCODER),
            **cross(["imagenet", "imagenetv2", "imagenet-a"], ["calibration"], **ENCODER),
            **cross(["imagenet-ood"], ["linear"], **ENCODER),
        },
        unlisted={"": ENCODER},
        default_backbones=COMPARED,
        skips_absent_data=True,
    )
)


# as MMSegmentation's configs of both: images as large as they are, and 480 px
CITYSCAPES = {**ENCODER, "size": 1024, "crop": (512, 1024)}
CONTEXT = {**ENCODER, "size": 480}
# as the Monocular-Depth-Estimation-Toolbox reads and scores KITTI
KITTI = {
    **ENCODER,
    "size": 352,
    "crop": (352, 704),
    "train_area": ("kb",),
    "test_area": ("kb-garg",),
}

register_suite(
    Suite(
        name="card",
        about="the columns of model cards: classification, retrieval, correspondence, videos,"
        " segmentation and depth, on the datasets that are present",
        tasks={
            **cross(["imagenet"], ["linear", "knn"], **ENCODER),
            **cross(IMAGENET_SETS[1:], ["linear"], **ENCODER),
            **cross(["roxford5k", "rparis6k", "amstertime"], ["retrieval"], **ENCODER),
            **cross(["spair"], ["keypoints"], **ENCODER),
            **cross(["davis"], ["label-propagation"], **ENCODER),
            **cross(["navi"], ["view-matching"], **ENCODER),
            **cross(["ade20k", "voc"], ["linear"], **ENCODER),
            **cross(["cityscapes"], ["linear"], **CITYSCAPES),
            **cross(["pascal-context-59"], ["linear"], **CONTEXT),
            **cross(["nyu-depth", "sun-rgbd"], ["linear"], **ENCODER),
            **cross(["kitti-depth"], ["linear"], **KITTI),
        },
        unlisted={
            "": ENCODER,
            "cityscapes": CITYSCAPES,
            "pascal-context-59": CONTEXT,
            "kitti-depth": KITTI,
        },
        default_backbones=COMPARED,
        skips_absent_data=True,
    )
)


# what tasks ask of features (``reports.records.LEVELS``): a report of all three has a profile
LEVEL_TASKS = {
    "low": cross(["corners", "orientation", "bsds500"], ["linear"], **ENCODER),
    "mid": {
        **cross(["nyu-depth", "nyu-depth-order"], ["linear"], **ENCODER),
        **cross(["nyu-normal", "nyu-occlusion"], ["linear"], **ENCODER),
        **cross(["voc-foreground"], ["linear"], **ENCODER),
        **cross(["voc-objects"], ["tokencut"], **ENCODER),
        **cross(["images"], ["homography"], **ENCODER),
        **cross(["navi"], ["view-matching"], **ENCODER),
        **cross(["navi-multiview"], ["relative-pose"], **ENCODER),
        **cross(["nights"], ["2afc"], **ENCODER),
    },
    "high": {
        **cross(["imagenet"], ["linear", "retrieval"], **ENCODER),
        **cross(["places365"], ["linear"], **ENCODER),
        **cross(["voc2007-labels", "coco-labels"], ["linear"], **ENCODER),
        **cross(["voc", "nyu-40"], ["linear"], **ENCODER),
        **cross(["coco"], ["ssd"], **ENCODER),
    },
}
LEVEL_ABOUT = {
    "low": "edges: corners, orientation, boundaries",
    "mid": "geometry, grouping and likeness",
    "high": "categories of images, objects and pixels",
}
LEVEL_TASKS["levels"] = {**LEVEL_TASKS["low"], **LEVEL_TASKS["mid"], **LEVEL_TASKS["high"]}
LEVEL_ABOUT["levels"] = "low, mid and high level, with a profile of each backbone"
for name, tasks in LEVEL_TASKS.items():
    register_suite(
        Suite(
            name=name,
            about=f"{LEVEL_ABOUT[name]}, on the datasets that are present",
            tasks=tasks,
            unlisted={"": ENCODER},
            default_backbones=COMPARED,
            skips_absent_data=True,
        )
    )


# kind of dataset → its probe, in fp32 as in DataComp's evaluation (the paper's Table 4)
PROBES = {"classification": "zero-shot", "association": "zero-shot", "image-text": "retrieval"}
SHIFTS = ("imagenet1k", "imagenetv2", "imagenet-a", "imagenet-r", "imagenet_sketch", "objectnet")

register_suite(
    Suite(
        name="zeroshot38",
        about="the 38 zero-shot tasks of OpenCLIP and DataComp and their average",
        tasks={f"{task.name}/{PROBES[task.kind]}": {} for task in DATACOMP},
        default_backbones=COMPARED,
        skips_absent_data=True,
        average="average of the 38 tasks",
    )
)
register_suite(
    Suite(
        name="imagenet-shifts",
        about="zero-shot on ImageNet and its shifts V2, A, R, Sketch and ObjectNet",
        tasks={f"{name}/zero-shot": {} for name in SHIFTS},
        default_backbones=COMPARED,
        skips_absent_data=True,
    )
)


VTAB_DATASETS = [name for names in VTAB.values() for name in names]
# 2,500 steps, and a choice on 200 of the images, as VTAB's
STEPS = {**ENCODER, "epochs": 1250, "batch_size": 512, "holdout": 0.2, "tune": ("frozen", "all")}

register_suite(
    Suite(
        name="vtab",
        about="VTAB-1k: 19 tasks of 1,000 training images, linear (frozen and tuned) and few-shot,"
        " with averages by groups",
        tasks={
            **cross(VTAB_DATASETS, ["linear"], **STEPS),
            **cross(VTAB_DATASETS, ["few-shot"], **ENCODER, shots=1000),
        },
        unlisted={"": ENCODER},
        default_backbones=COMPARED,
        skips_absent_data=True,
        average="VTAB-1k",
        groups=VTAB,
        train_images=1000,
    )
)
