"""Data of segmentation: a crop is drawn again where one class fills more than three quarters."""

_base_ = "dense.py"

# of ``dense.py``, but for ``cat_max_ratio``: a config replaces lists as a whole
train_pipeline = [
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="LoadGroundTruth"),
    dict(
        type="RandomResize",
        scale=(2048, 512),
        ratio_range=(0.5, 2.0),
        keep_ratio=True,
        resize_type="Resize",
    ),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="FollowImage"),
    dict(type="PadCrop", size=(512, 512)),
    dict(type="PackRGB"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(type="TaskScores", task="segmentation")
