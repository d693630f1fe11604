"""A plugin's dense task by DeepLabv3 on frozen maps, trained with its own loss."""

_base_ = ["../_base_/heads/deeplabv3.py", "../_base_/dense.py", "../_base_/schedule_40k.py"]

model = dict(decode_head=dict(loss_decode=dict(type="TaskObjective")))
