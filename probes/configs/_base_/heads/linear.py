"""The linear probe: batch normalisation and one 1×1 convolution."""

_base_ = "head.py"

model = dict(decode_head=dict(type="LinearHead", dropout_ratio=0.0, dropout_first=False, norm=True))
