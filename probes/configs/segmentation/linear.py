"""The linear probe, batch normalisation and one 1×1 convolution: segmentation."""

_base_ = ["../_base_/segmentation.py", "../_base_/schedule_40k.py"]

model = dict(
    type="DenseModel",
    backbone=dict(type="FrozenBackbone", precision="fp32"),
    neck=dict(type="ResizeConcat"),  # all maps at one stride, concatenated
    decode_head=dict(
        type="LinearHead",
        dropout_ratio=0.0,
        dropout_first=False,
        align_corners=False,
        loss_images=None,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, avg_non_ignore=True),
    ),
    test_cfg=dict(mode="whole", flip=False),
)
