"""Segmentation by DeepLabv3 on frozen maps, trained with cross-entropy."""

_base_ = ["../_base_/heads/deeplabv3.py", "../_base_/segmentation.py", "../_base_/schedule_40k.py"]

model = dict(
    decode_head=dict(
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, avg_non_ignore=True)
    )
)
