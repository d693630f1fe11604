"""Depth by DPT on frozen maps, trained with the scale-invariant log loss."""

_base_ = ["../_base_/heads/dpt.py", "../_base_/depth.py", "../_base_/schedule_20k.py"]

model = dict(decode_head=dict(loss_decode=dict(type="DepthObjective", silog_lambda=0.5)))
