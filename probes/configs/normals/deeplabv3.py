"""Surface normals by DeepLabv3 on frozen maps, trained with the angle."""

_base_ = ["../_base_/heads/deeplabv3.py", "../_base_/normals.py", "../_base_/schedule_20k.py"]

model = dict(decode_head=dict(loss_decode=dict(type="NormalObjective", uncertainty=False)))
