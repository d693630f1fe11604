"""Hummingbird's in-context segmentation: attention over the nearest of ten million training
patches.

Source: Balažević et al., "Towards In-context Scene Understanding", NeurIPS 2023, as reproduced by
github.com/vpariza/open-hummingbird-eval: the table of README.md (memory of 1024·10⁴ patches, two
passes, 512 px) and ``hbird/hbird_eval.py``. Its metric is ``mIoU_hungarian``.
"""

from probes.registry import TRAINAUG, Preset, Protocol, register_protocol

PROBE = "segmentation/in-context"
SETTINGS = {
    "size": 512,
    "resize": "square-bilinear",
    "score_size": 512,
    "precision": "fp32",
    "layers": "last",
    "feature_stride": None,
    "memory": 10_240_000,
    "passes": 2,
    "sampling": "rare",
    "void": "background",
    "neighbours": 30,
    "temperature": 0.02,
    "cache": "fp32",
}

register_protocol(
    Protocol(
        "hummingbird",
        "Hummingbird (Balažević et al. 2023), as in vpariza/open-hummingbird-eval",
        (
            Preset(PROBE, SETTINGS),
            Preset(
                PROBE,
                SETTINGS,
                ("voc",),
                {"train_list": "trainaug"},
                images=TRAINAUG["images"],
            ),
            # the stored 0 is a class: 151 of them
            Preset(PROBE, {**SETTINGS, "void": "class"}, ("ade20k",)),
        ),
        differs={
            "": {
                "normalised black": (
                    "images of every backbone have ImageNet's mean and deviation, of blue 0.255,"
                    " here its own"
                ),
                "labels of VOC": (
                    "of VOC all training labels are those of SBD's list, here VOC's own where it"
                    " has them"
                ),
                "precision": (
                    "unless a function for the features is given, a GPU computes the backbone in"
                    " float16, here in float32"
                ),
                "remembered shares": (
                    "the classes' shares of a remembered patch are float32, here float16 (0.0005 of"
                    " a share)"
                ),
                "seeds of crops": (
                    "crops, colours and the noise that patches are remembered by come from one"
                    " generator (seeded by eval.py, not by hbird_evaluation), here crops and"
                    " colours follow from the image alone"
                ),
                "classes of COCO": (
                    "COCO has 15 supercategories of stuff or 12 of things, here 171 classes; it has"
                    " no CamVid: on these only the recipe is Hummingbird's"
                ),
                "search": "neighbours are searched approximately (ScaNN), here exactly",
            },
        },
        commit="5e79da2",
        version=3,
    )
)
