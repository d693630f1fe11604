"""DPT (Ranftl et al., ICCV 2021): a plugin's dense task."""

_base_ = ["../_base_/dense.py", "../_base_/schedule_40k.py"]

model = dict(
    type="DenseModel",
    backbone=dict(type="FrozenBackbone", precision="fp32"),
    neck=dict(type="ResizeConcat"),  # all maps at one stride, concatenated
    decode_head=dict(
        type="MultiWidthDPTHead",
        channels=512,
        widths=(),
        readout_type="ignore",
        dropout_ratio=0.1,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_images=None,
        loss_decode=dict(type="TaskObjective"),
    ),
    test_cfg=dict(mode="whole", flip=False),
)
