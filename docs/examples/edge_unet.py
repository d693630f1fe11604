"""A U-Net that learns the task of ``python -m benchmark new task edges``. A plugin, beside that of
the task. Ground truth: DIR/edges/images/{train,val}, and DIR/edges/annotations/{train,val}, PNGs.

python -m benchmark experts train edge-unet --plugin edges.py --plugin edge_unet.py \\
    --data-root DIR --out edge-unet
"""

from backbones.cliptex.experts.base import EXPERTS
from backbones.cliptex.experts.unet import UNetExpert


class EdgeUNet(UNetExpert):
    name = "edge-unet"
    about = "edges of objects; a U-Net"
    task = "edges"  # it is learned by the loss of this task


EXPERTS.register("edge-unet", EdgeUNet)
