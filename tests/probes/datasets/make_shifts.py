"""Small copies of ImageNet and of its other test sets, in their authors' layouts: four classes,
each a colour."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from probes.datasets import classification
from probes.datasets.shifts import OBJECTNET, SHIFTS, of_timm
from probes.image_level.settings import ALEXNET_ERRORS
from tests.probes.datasets.make import COLOURS, picture, save

# candle and banana are classes of -A, -R and ObjectNet; the last two are one class of ObjectNet
CLASSES = dict(zip((470, 954, 409, 530), COLOURS.values(), strict=True))
SIZE = 40, 32


def make_imagenet(root: Path, n_train: int = 4) -> Path:
    """``n_train`` and two images of each class; those of val have official names, and the labels of
    ImageNet-ReaL name their class. One more, of the first class, has no such label."""
    rng, wnids = np.random.default_rng(0), classification.wnids()
    real = json.loads(of_timm("imagenet_real_labels.json").read_text())
    for index, colour in CLASSES.items():
        for number in range(n_train):
            save(root / f"train/{wnids[index]}/{number}.JPEG", picture(rng, SIZE, colour))
        numbers = [number for number, labels in enumerate(real, 1) if index in labels][:2]
        numbers += [real.index([]) + 1] if index == 470 else []
        for number in numbers:
            name = f"val/{wnids[index]}/ILSVRC2012_val_{number:08d}.JPEG"
            save(root / name, picture(rng, SIZE, colour))
    return root


def make_shift(root: Path, name: str, count: int = 2) -> Path:
    """``count`` images of each class that the set has, in ``root / name``."""
    rng, wnids, folder = np.random.default_rng(1), classification.wnids(), root / name
    for index, colour in CLASSES.items():
        for number in range(count):
            image = picture(rng, SIZE, colour)
            if name in ("imagenet-a", "imagenet-r") and index in (470, 954):
                save(folder / wnids[index] / f"{number}.jpg", image)
            elif name == "sketch":
                save(folder / wnids[index] / f"{number}.JPEG", image)
            elif name == "imagenetv2":
                save(folder / str(index) / f"{number}.jpeg", image)
            elif name == "objectnet-1.0":
                image = np.pad(image[2:-2, 2:-2], ((2, 2), (2, 2), (0, 0)))
                image[:, [0, 1, -2, -1]] = image[[0, 1, -2, -1]] = (255, 0, 0)
                names = {470: "candle", 954: "banana", 409: "alarm_clock", 530: "alarm_clock"}
                save(folder / f"images/{names[index]}/{index}-{number}.png", image)
                save(folder / f"images/air_freshener/{index}-{number}.png", image)
            elif name == "imagenet-c":
                for corruption in [each for each in ALEXNET_ERRORS if each != "fog"]:
                    for level in range(1, 6):
                        save(
                            folder / f"{corruption}/{level}/{wnids[index]}/{number}.JPEG",
                            picture(rng, SIZE, np.clip(colour, 0, 255 - 40 * level)),
                        )
    return folder


def make_real(root: Path, real_data: Path) -> Path:
    """ImageNet, its other test sets and images of unknown classes, of small real subsets:
    photographs of 20 classes, changed where the set's own cannot be had."""
    tiny, wnids = real_data / "tiny_imagenet_20", classification.wnids()
    real = json.loads(of_timm("imagenet_real_labels.json").read_text())
    numbers = {
        index: iter([i for i, each in enumerate(real, 1) if index in each]) for index in range(1000)
    }
    groups = {
        name: {i for group in SHIFTS[name].groups for i in group}
        for name in ("imagenet-a", "imagenet-r")
    }
    objectnet = {index: name for name, indices in OBJECTNET.items() for index in indices}
    shutil.copytree(tiny / "train", root / "imagenet/train")
    for number, path in enumerate(sorted((tiny / "val").rglob("*.JPEG"))):
        wnid, stem = path.parent.name, path.stem
        index = wnids.index(wnid)
        name = f"{wnid}/ILSVRC2012_val_{next(numbers[index]):08d}.JPEG"
        (root / "imagenet/val" / wnid).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / "imagenet/val" / name)
        with Image.open(path) as image:
            image = image.convert("RGB")
        save(root / "sketch" / wnid / f"{stem}.JPEG", np.asarray(image.filter(ImageFilter.CONTOUR)))
        save(root / "imagenetv2" / str(index) / f"{stem}.jpeg", np.asarray(image.rotate(10)))
        for shift, effect in {
            "imagenet-a": ImageOps.mirror,
            "imagenet-r": ImageOps.posterize,
        }.items():
            if index in groups[shift]:
                changed = effect(image, 2) if shift == "imagenet-r" else effect(image)
                save(root / shift / wnid / f"{stem}.jpg", np.asarray(changed))
        if index in objectnet:
            bordered = ImageOps.expand(image, 2, (255, 0, 0))
            save(root / f"objectnet-1.0/images/{objectnet[index]}/{stem}.png", np.asarray(bordered))
        for level in range(1, 6) if number % 10 == 0 else ():
            corrupted = {
                "defocus_blur": image.filter(ImageFilter.GaussianBlur(level / 2)),
                "brightness": ImageEnhance.Brightness(image).enhance(1 + level / 3),
                "contrast": ImageEnhance.Contrast(image).enhance(0.8**level),
                "pixelate": image.reduce(level).resize(image.size, Image.Resampling.NEAREST),
            }
            for corruption, changed in corrupted.items():
                name = f"imagenet-c/{corruption}/{level}/{wnid}/{stem}.JPEG"
                save(root / name, np.asarray(changed.resize((224, 224))))
    near = root / "imagenet-ood/near"
    near.mkdir(parents=True)
    shutil.copytree(real_data / "imagenet_super15/val/musical_instrument", near / "instruments")
    shutil.copytree(real_data / "camvid/images/val", root / "imagenet-ood/streets")
    streets = sorted((root / "imagenet-ood/streets").iterdir())
    (root / "imagenet-ood/far").mkdir()
    lines = [f"{path.relative_to(root / 'imagenet-ood').as_posix()} -1\n" for path in streets]
    (root / "imagenet-ood/far/streets.txt").write_text("".join(lines))
    return root
