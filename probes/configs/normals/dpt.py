"""DPT (Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021): surface normals."""

_base_ = ["../_base_/normals.py", "../_base_/schedule_20k.py"]

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
        loss_decode=dict(type="NormalObjective", uncertainty=False),
    ),
    test_cfg=dict(mode="whole", flip=False),
)
