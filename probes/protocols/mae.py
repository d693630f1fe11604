"""MAE's fine-tuning of ViT-B on ImageNet-1k, 100 epochs.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, and
``FINETUNE.md``, ``main_finetune.py``, ``engine_finetune.py``, ``util/lr_decay.py`` and
``util/lr_sched.py`` of github.com/facebookresearch/mae: AdamW 5e-4 for 256 images, here 2e-3 for
1,024, weight decay 0.05, 0.65 times the rate from a block to the one before, drop path 0.1, five
epochs of warm-up, cosine. For ViT-L: ``tune_rates`` 4e-3, ``layer_decay`` 0.75, ``drop_path`` 0.2,
50 epochs.
"""

from probes.registry import NORMALISED_BLACK, Preset, Protocol, register_protocol

register_protocol(
    Protocol(
        "mae",
        "MAE (He et al. 2022), main_finetune.py of facebookresearch/mae",
        (
            Preset(
                "classification/linear",
                {
                    "size": 224,
                    "precision": "fp32",
                    "tune": "all",
                    "tune_rates": (2e-3,),
                    "layer_decay": 0.65,
                    "drop_path": 0.1,
                    "epochs": 100,
                    "batch_size": 1_024,
                    "weight_decays": (0.05,),
                    "random_crops": False,
                    "features": "projected",
                },
                ("imagenet",),
            ),
        ),
        differs={
            "": {
                **NORMALISED_BLACK,
                "augmentation": (
                    "RandAugment, random erasing, mixup 0.8, CutMix 1.0 and label smoothing 0.1"
                    " come on top of random crops and flips, which are all there is here"
                ),
                "features": (
                    "the head reads the mean of the patch tokens, normalised; here the backbone's"
                    " own embedding, of a plain ViT the class token"
                ),
                "initial head": (
                    "the classifier begins with weights of 2e-5, here as the frozen tier's"
                ),
                "lowest rate": "the cosine ends at 1e-6 times a block's share, here at 0",
                "warm-up": "the rate is full after the warm-up, here with its last iteration",
                "precision": "the network computes in float16, here in float32",
                "last batch": "what does not fill a batch is left out of an epoch, here it is not",
            },
        },
        commit="efb2a80",
    )
)
