"""The head of the setting ``head``: a plugin's dense task."""

_base_ = ["../_base_/dense.py", "../_base_/schedule_40k.py"]

model = dict(
    type="DenseModel",
    backbone=dict(type="FrozenBackbone", precision="fp32"),
    neck=dict(type="ResizeConcat"),  # all maps at one stride, concatenated
    decode_head=dict(
        align_corners=False,
        loss_images=None,
        loss_decode=dict(type="TaskObjective"),
    ),
    test_cfg=dict(mode="whole", flip=False),
)
