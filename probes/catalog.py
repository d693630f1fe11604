"""Importing this module registers every dataset, probe and protocol of this package; nothing
else does."""

from probes.datasets.specs import (  # noqa: F401
    ade20k,
    camvid,
    coco,
    coco_stuff,
    flickr,
    imagefolder,
    imagenet,
    nyu,
    spair,
    voc,
    webdataset,
)
from probes.dense import probe as dense  # noqa: F401
from probes.dense.patches import probe as patches  # noqa: F401
from probes.detection import probe as detection  # noqa: F401
from probes.image_level import probe as image_level  # noqa: F401
from probes.protocols import (  # noqa: F401
    capi,
    dinov2,
    dinov3,
    hummingbird,
    mmdet1x,
    mmseg,
    pixio,
    probe3d,
    radio,
    tips,
)
