"""Surface normals by probe3d's DPT on frozen maps, trained with the angle."""

_base_ = ["../_base_/heads/dpt-probe3d.py", "../_base_/normals.py", "../_base_/schedule_20k.py"]

model = dict(decode_head=dict(loss_decode=dict(type="NormalObjective", uncertainty=False)))
