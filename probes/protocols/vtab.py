"""VTAB-1k: fine-tuning on 1,000 images of each of 19 datasets, 2,500 steps (suite ``vtab``).

Source: Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task Adaptation
Benchmark", 2019, and ``README.md`` (its command for a TPU), ``scripts/run_all_tasks.sh``,
``task_adaptation/{trainer,data_loader}.py`` of github.com/google-research/task_adaptation: batches
of 512, all weights, images squeezed to 224 px. What is chosen is chosen on 200 of the images.
"""

from probes.datasets.webdataset import VTAB
from probes.registry import NORMALISED_BLACK, Preset, Protocol, register_protocol

register_protocol(
    Protocol(
        "vtab",
        "VTAB-1k (Zhai et al. 2019), google-research/task_adaptation",
        (
            Preset(
                "classification/linear",
                {
                    "size": 224,
                    "precision": "fp32",
                    "tune": "all",
                    "layer_decay": 1.0,
                    "drop_path": 0.0,
                    "epochs": 1_250,  # of two batches
                    "batch_size": 512,
                    "weight_decays": (0.0,),
                    "holdout": 0.2,
                    "random_crops": False,
                },
                tuple(name for names in VTAB.values() for name in names),
            ),
        ),
        differs={
            "": {
                **NORMALISED_BLACK,
                "optimizer": "SGD of momentum 0.9, here AdamW",
                "rates": (
                    "0.01, a tenth of it after 750, 1,500 and 2,250 steps, here a cosine from the"
                    " best of three rates after a warm-up"
                ),
                "initial head": "the classifier begins anew, here as the frozen tier's",
                "augmentation": "none, here random crops and flips",
                "image": "images are squeezed into a square, here resized and cropped",
                "chosen images": (
                    "the first 800 images of train and 200 of its own validation split, here evenly"
                    " spaced ones of train"
                ),
            },
        },
        commit="d7630d3",
    )
)
