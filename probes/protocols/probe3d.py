"""probe3d's depth and surface normals on NYU Depth v2, by a DPT-style head on four blocks, and its
correspondence of views of NAVI and ScanNet.

Source: El Banani et al., "Probing the 3D Awareness of Visual Foundation Models", CVPR 2024, and
github.com/mbanani/probe3d: ``configs/{depth,snorm}_training.yaml``,
``configs/optimizer/ten_epoch.yaml``, ``configs/probe``, ``evals/models/probes.py``,
``evals/utils/{optim,losses,metrics}.py``, ``evals/datasets/{nyu,utils}.py``; of views
``evaluate_{navi,scannet}_correspondence.py``, ``evals/utils/correspondence.py``,
``evals/datasets/{navi,scannet_pairs}.py``, ``data_processing/resize_navi.py``.

AdamW with torch's defaults; warm-up over 1.5 of 10 epochs, then a quarter of a cosine. Images and
ground truth are the central 480 × 480 pixels, in training and in testing. Its numbers are means
over images: ``rmse``, ``delta1`` … of depth, ``normal_image_rmse``, ``normal_image_11.25`` … of
normals.

``probe3d`` follows the first commit, which came with the paper: its loss of depth compares images
of a batch, not pixels. ``probe3d-head`` follows the mended code: since ac00369 the loss compares
pixels (2.138 against 2.874 on one batch), since fbe0cd2 the head and its output are enlarged
bilinearly, with aligned corners; others who use probe3d's head (VisBench) have these. The code of
views is the same in both.

No code of training reads the ``random_seed`` of its configs, so its runs are not seeded. With one
GPU (``num_gpus: 1``, its default) images are not shuffled, as here. ``train_depth.py`` saves
``model.module``, which exists on several GPUs only, and there a ``DistributedSampler`` shuffles
them: its authors' own runs may have been shuffled.
"""

from dataclasses import replace

from probes.registry import ADAMW, HEAD_PRECISION, Preset, Protocol, register_protocol

CENTRE = (0, 480, 80, 560)
SHARED = {
    **ADAMW,
    "size": 480,
    "train_area": CENTRE,
    "test_area": CENTRE,
    "crop": (480, 480),
    "scale_range": (1.0, 1.0),
    "interpolation": "bilinear",
    "enlarge": 0.5,
    "shuffle": False,
    "flip": 0.0,
    "colours": "probe3d",
    "epochs": 10.0,
    "batch_size": 8,
    "loss_images": None,
    "lr": 5e-4,
    "weight_decay": 0.01,
    "decay_all": True,
    "schedule": "probe3d",
    "warmup": 0.15,
    "layers": "all",
    "class_token": "concat-dino",
    "channels": 512,
    "align_corners": False,
}
DEPTH = Preset(
    "depth/dpt-probe3d",
    {**SHARED, "rotation": 0.0, "bins": 256, "bins_loss": "probe3d"},
    datasets=("nyu-depth",),
)
NORMALS = Preset(
    "normals/dpt-probe3d",
    {**SHARED, "uncertainty": True, "mask": "depth"},
    datasets=("nyu-normal",),
)
VIEWS = {"precision": "fp32", "layers": "last", "matches": 1000}
OBJECT_VIEWS = Preset(
    "object-views/view-matching", {**VIEWS, "size": 512, "pairs": "sampled"}, datasets=("navi",)
)
SCENE_VIEWS = Preset("scene-views/view-matching", {**VIEWS, "size": 480}, datasets=("scannet",))
FEW_POINTS = {"few points": "a pair with fewer than 1,000 matches ends it with an error"}
TRAINED = {
    "data": (
        "it trains on 30,814 images of GeoNet, in the order of their names, and tests"
        " on images with a white border (those of `data get nyu-24k` have a black one,"
        " and are JPEG files)"
    ),
    "iterations": (
        "the last batch of an epoch has the images that are left, here batches go on"
        " into the next epoch"
    ),
    **HEAD_PRECISION,
    "strides": "maps of a CNN are brought to stride 16, here to 8",
    "padding": (
        "images that are no whole number of patches are padded on all sides with the"
        " mean colour, and the output is not cut to the image (normals are resized to"
        " it by cubic interpolation) (none with patches of 16; with those of 14"
        " predictions move by up to 5 of 480 px)"
    ),
    "initial weights": (
        "the last convolution starts as torch makes it, here with weights of σ = 0.01"
        " and normals that face the camera"
    ),
    "scores without valid pixels": ("an image without valid pixels counts as 0, here not at all"),
    "seed": "its runs are not seeded (no code reads its random_seed of 8)",
}
OF_BACKBONES = {
    "tokens": "its blocks are taken before the backbone's final norm",
    "mean colour": ("images of every backbone have ImageNet's mean and deviation, here its own"),
    "MAE's blocks": (
        "MAE's maps are taken one block earlier, and its position embedding is computed"
        " for 30 × 30 patches, here it is resized"
    ),
}
OF_HEADS = {
    "depth/dpt-probe3d": {
        **TRAINED,
        "test depth": (
            "depth to test on is not rounded, here to 1 mm (at most 0.5 mm, with `data get"
            " nyu-24k` 1 mm)"
        ),
        "scored pixels": (
            "depths of up to 1 mm and of exactly 10 m are scored, here not (none expected on NYU)"
        ),
        "scale-invariant scores": (
            "depth is scored after the best scale and shift of each image, too"
        ),
    },
    "normals/dpt-probe3d": {
        **TRAINED,
        "loss of small angles": "angles below 0.81° have no gradient, here below 0.08°",
        "pixels without a normal": (
            "a pixel with a depth and without a normal is scored as 90° off, and is in the"
            " loss, here it is in neither"
        ),
        "stored normals": (
            "normals are not rounded, here their components to 1/127.5 (0.2° a pixel)"
        ),
    },
}

register_protocol(
    Protocol(
        "probe3d",
        "Probing the 3D Awareness of Visual Foundation Models (El Banani et al., CVPR 2024),"
        " mbanani/probe3d",
        (DEPTH, NORMALS, OBJECT_VIEWS, SCENE_VIEWS),
        differs={
            "": {
                **OF_BACKBONES,
                "SigLIP's blocks": (
                    "SigLIP's blocks are run twice and maps are taken in the second pass, so its"
                    " published numbers are not comparable"
                ),
            },
            **OF_HEADS,
            "object-views/view-matching": {
                **FEW_POINTS,
                "order of files": (
                    "pairs are sampled from files in the order in which the disk lists them, here"
                    " in that of their names; and only of objects that also have multiview scenes"
                ),
                "views paired with themselves": (
                    "0.38 % of views are paired with themselves, by rounding of the angle, which"
                    " makes their recall 100, here none is"
                ),
                "image": (
                    "photographs that are reduced to 1024 pixels are stored as JPEG files again,"
                    " here not"
                ),
            },
            "scene-views/view-matching": {
                **FEW_POINTS,
                "scale of colours": (
                    "colours go from -1 to 1 for every backbone, here to its own mean and deviation"
                ),
            },
        },
        commit="1fff822",
        version=3,
    )
)
register_protocol(
    Protocol(
        "probe3d-head",
        "the mended code of probe3d (El Banani et al., CVPR 2024), mbanani/probe3d",
        (
            replace(
                DEPTH,
                settings={**DEPTH.settings, "bins_loss": "probe3d-gradient", "align_corners": True},
            ),
            replace(NORMALS, settings={**NORMALS.settings, "align_corners": True}),
        ),
        differs={"": OF_BACKBONES, **OF_HEADS},
        commit="fbe0cd2",
    )
)
