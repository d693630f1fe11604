"""The head of the setting ``head``: depth."""

_base_ = ["../_base_/depth.py", "../_base_/schedule_20k.py"]

model = dict(
    type="DenseModel",
    backbone=dict(type="FrozenBackbone", precision="fp32"),
    neck=dict(type="ResizeConcat"),  # all maps at one stride, concatenated
    decode_head=dict(
        align_corners=False,
        loss_images=None,
        loss_decode=dict(type="DepthObjective", silog_lambda=0.5),
    ),
    test_cfg=dict(mode="whole", flip=False),
)
