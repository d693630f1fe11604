"""Segmentation by two convolutions, with a learning rate that falls in steps.

python -m benchmark run --backbone clip --task voc/my_probe.py --data-root DIR
"""

_base_ = ["probes::_base_/heads/head.py", "probes::_base_/segmentation.py"]

model = dict(
    decode_head=dict(
        type="FCNHead",
        channels=256,
        num_convs=1,
        dropout_ratio=0.1,
        norm_cfg=dict(type="BN", requires_grad=True),
    )
)
param_scheduler = [
    dict(type="MultiStepLR", by_epoch=False, milestones=[20_000, 30_000], gamma=0.1),
]
