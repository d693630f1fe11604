"""probe3d's simplification of DPT (El Banani et al., CVPR 2024)."""

_base_ = "head.py"

model = dict(decode_head=dict(type="Probe3dHead", channels=512, dropout_ratio=0.0))
