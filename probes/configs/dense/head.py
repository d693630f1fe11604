"""A plugin's dense task by the setting ``head`` on frozen maps, trained with its own loss."""

_base_ = ["../_base_/heads/head.py", "../_base_/dense.py", "../_base_/schedule_40k.py"]

model = dict(decode_head=dict(loss_decode=dict(type="TaskObjective")))
