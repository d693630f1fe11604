"""Data of depth: 480 px as NYU-v2, not scaled at random: enlarging an image changes its depth."""

_base_ = "dense.py"

train_pipeline = [
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="LoadGroundTruth"),
    dict(
        type="RandomResize",
        scale=(1920, 480),
        ratio_range=(1.0, 1.0),
        keep_ratio=True,
        resize_type="Resize",
    ),
    dict(type="RandomCrop", crop_size=(480, 480)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="FollowImage"),
    dict(type="PadCrop", size=(480, 480)),
    dict(type="PackRGB"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="Resize", scale=(1920, 480), keep_ratio=True),
    dict(type="LoadGroundTruth"),
    dict(type="PackRGB"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_evaluator = dict(type="TaskScores", task="depth")
