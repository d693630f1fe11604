"""Data of a dense task: 512 px, as in MMSegmentation's configs, but for its own ground truth."""

default_scope = "mmseg"
custom_imports = dict(imports=["probes.dense.config"])

train_pipeline = [
    # orientation tags are ignored: label maps lie over the stored pixels
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="LoadGroundTruth"),
    dict(
        type="RandomResize",
        scale=(2048, 512),
        ratio_range=(0.5, 2.0),
        keep_ratio=True,
        resize_type="Resize",
    ),
    dict(type="RandomCrop", crop_size=(512, 512)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="FollowImage"),  # values of ground truth, such as the x of a normal
    dict(type="PadCrop", size=(512, 512)),
    dict(type="PackRGB"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", color_type="color_ignore_orientation"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="LoadGroundTruth"),  # after resizing: scores are at its own resolution
    dict(type="PackRGB"),
]
train_dataloader = dict(
    batch_size=16,
    dataset=dict(type="DenseDataset", split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=32,
    batch_sampler=dict(type="SameShapeBatches"),
    dataset=dict(type="DenseDataset", split="val", pipeline=test_pipeline, test_mode=True),
)
val_evaluator = dict(type="TaskScores")
