"""Small synthetic copies of every official layout, for tests of anything that reads datasets.

Each ``make_*`` writes a copy at ``root`` (the dataset's own folder) and returns it. Sizes are
(width, height).
"""

import csv
import io
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.io import savemat

from probes.datasets.labels import VOC_CLASSES

SIZE = 48, 40
COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 200),
    "white": (230, 230, 230),
}


def save(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def picture(
    rng: np.random.Generator, size: tuple[int, int], colour: Sequence[int] = (128, 128, 128)
) -> np.ndarray:
    """A noisy picture of one colour, (H, W, 3) uint8."""
    noise = rng.integers(-25, 26, (size[1], size[0], 3))
    return (np.asarray(colour) + noise).clip(0, 255).astype(np.uint8)


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def truncate(path: Path, keep: float = 0.5) -> Path:
    """Cut a file off, as an interrupted download does."""
    os.truncate(path, int(path.stat().st_size * keep))
    return path


def labels(rng: np.random.Generator, size: tuple[int, int], values: Sequence[int]) -> np.ndarray:
    return rng.choice(np.asarray(values, dtype=np.uint8), (size[1], size[0]))


def make_voc(root: Path, n_train: int = 4, n_val: int = 3, n_aug: int = 0) -> Path:
    """VOC2012; with ``n_aug`` more images in ``trainaug.txt`` and ``SegmentationClassAug``."""
    rng = np.random.default_rng(0)
    names = [f"2007_{index:06d}" for index in range(n_train + n_val + n_aug)]
    train, val, aug = names[:n_train], names[n_train : n_train + n_val], names[n_train + n_val :]
    for name in names:
        save(root / f"JPEGImages/{name}.jpg", picture(rng, SIZE))
        folder = "SegmentationClassAug" if name in aug else "SegmentationClass"
        save(root / f"{folder}/{name}.png", labels(rng, SIZE, [*range(21), 255]))
    lists = {"train": train, "val": val}
    if aug:
        lists["trainaug"] = train + aug
    for name, entries in lists.items():
        write_lines(root / f"ImageSets/Segmentation/{name}.txt", entries)
    return root


def make_pairs(
    root: Path, counts: dict[str, int], values: Sequence[int], image: str, target: str
) -> Path:
    """Images and label maps, by formats of their file names."""
    rng = np.random.default_rng(0)
    for part, count in counts.items():
        for index in range(count):
            names = {"part": part, "index": index}
            save(root / f"images/{part}/{image.format(**names)}", picture(rng, SIZE))
            save(root / f"annotations/{part}/{target.format(**names)}", labels(rng, SIZE, values))
    return root


def make_ade(root: Path, n_train: int = 4, n_val: int = 3) -> Path:
    """ADEChallengeData2016: stored labels 0 (unlabelled) to 150."""
    names = "ADE_{part}_{index:05d}.jpg", "ADE_{part}_{index:05d}.png"
    return make_pairs(root, {"training": n_train, "validation": n_val}, range(151), *names)


def make_camvid(root: Path, n_train: int = 4, n_val: int = 3) -> Path:
    """11 classes and 255."""
    names = "frame_{part}_{index:05d}.jpg", "frame_{part}_{index:05d}.png"
    return make_pairs(root, {"train": n_train, "val": n_val}, [*range(11), 255], *names)


def make_nyu_40(root: Path) -> Path:
    """40 classes and 255."""
    names = "{part}_{index}.jpg", "{part}_{index}.png"
    make_pairs(root, {"train": 4, "test": 3}, [*range(40), 255], *names)
    (root / "annotations").rename(root / "semseg")
    return root


def make_coco_stuff(root: Path, n_train: int = 2, n_val: int = 2) -> Path:
    """171 classes and 255, as MMSegmentation stores them."""
    names = "{index:012d}.jpg", "{index:012d}_labelTrainIds.png"
    counts = {"train2017": n_train, "val2017": n_val}
    return make_pairs(root, counts, [*range(171), 255], *names)


def make_cityscapes(root: Path, n_train: int = 4, n_val: int = 3) -> Path:
    """Two cities a split; 19 classes and 255, as csCreateTrainIdLabelImgs writes them."""
    rng = np.random.default_rng(0)
    for part, number in {"train": n_train, "val": n_val}.items():
        for index in range(number):
            name = f"{part}/city{index % 2}/city{index % 2}_{index:06d}_000019"
            save(root / f"leftImg8bit/{name}_leftImg8bit.png", picture(rng, SIZE))
            values = labels(rng, SIZE, [*range(19), 255])
            save(root / f"gtFine/{name}_gtFine_labelTrainIds.png", values)
    return root


def make_pascal_context(root: Path, n_train: int = 4, n_val: int = 3) -> Path:
    """VOC2010 with stored labels 0 (background) to 59."""
    rng = np.random.default_rng(0)
    for split, number in {"train": n_train, "val": n_val}.items():
        names = [f"2008_{split}{index:04d}" for index in range(number)]
        for name in names:
            save(root / f"JPEGImages/{name}.jpg", picture(rng, SIZE))
            save(root / f"SegmentationClassContext/{name}.png", labels(rng, SIZE, range(60)))
        write_lines(root / f"ImageSets/SegmentationContext/{split}.txt", names)
    return root


def make_kitti(root: Path, n_train: int = 2, n_val: int = 3) -> Path:
    """Eigen's split with images of two sizes, two a drive, and in the list of test images one
    without ground truth. Depths are 1 m and more to the right, of every fourth row."""
    rng = np.random.default_rng(0)
    date = "2011_09_26"
    for part, number in {"train": n_train, "test": n_val}.items():
        lines = [f"{date}/{date}_drive_0009_sync/image_02/data/none.png None 721.5"]
        for index in range(number):
            height, width = ((375, 1242), (370, 1224))[index % 2]
            drive = f"{date}_drive_{part}{index // 2}_sync"
            image = f"{date}/{drive}/image_02/data/{index:010d}.png"
            depth = f"{drive}/proj_depth/groundtruth/image_02/{index:010d}.png"
            row = rng.integers(0, 255, (1, width, 3)).repeat(height, axis=0)
            save(root / f"input/{image}", row.astype(np.uint8))
            values = np.zeros((height, width), np.uint16)
            values[::4] = 256 + np.arange(width)
            save(root / f"gt_depth/{depth}", values)
            lines.append(f"{image} {depth} 721.5")
        write_lines(root / f"kitti_eigen_{part}.txt", lines)
    return root


def write_ground_truth(
    path: Path, gallery: Sequence[str], queries: Sequence[str], entries: Sequence[dict]
) -> Path:
    """The ``.mat`` of Revisited Oxford and Paris, as MATLAB stores its cells and structures.

    Args:
        entries: of each query ``bbx``, and numbers of gallery images from 1 on in ``easy``,
            ``hard`` and ``junk``.
    """
    from scipy.io import savemat

    names = {"imlist": gallery, "qimlist": queries}
    cells = {key: np.array(list(each), object).reshape(1, -1) for key, each in names.items()}
    table = np.zeros((1, len(entries)), [(key, object) for key in ("bbx", "easy", "hard", "junk")])
    for index, entry in enumerate(entries):
        for key, values in entry.items():
            table[0, index][key] = np.array([values], np.float64)
    savemat(path, {**cells, "gnd": table})
    return path


def make_revisited(root: Path, name: str = "roxford5k") -> Path:
    """Three pictures of each colour, one easy, one hard and one junk; a query is grey but for a box
    of its colour."""
    rng = np.random.default_rng(0)
    gallery = [f"{colour}_{index:06d}" for colour in COLOURS for index in range(3)]
    for image in gallery:
        save(root / f"jpg/{image}.jpg", picture(rng, SIZE, COLOURS[image.partition("_")[0]]))
    for colour in COLOURS:
        pixels = picture(rng, (96, 40))
        pixels[:, 60:] = picture(rng, (36, 40), COLOURS[colour])
        save(root / f"jpg/{colour}_query.jpg", pixels)
    entries = [
        {"bbx": [60.2, 0, 95.6, 40], "easy": [n + 1], "hard": [n + 2], "junk": [n + 3]}
        for n in range(0, len(gallery), 3)
    ]
    queries = [f"{colour}_query" for colour in COLOURS]
    write_ground_truth(root / f"gnd_{name}.mat", gallery, queries, entries)
    return root


def make_amstertime(root: Path) -> Path:
    """A place is a colour; the old photographs of two of them are swapped."""
    rng = np.random.default_rng(0)
    old = ["green", "red", "blue", "white"]
    for index, (new_colour, old_colour) in enumerate(zip(COLOURS, old, strict=True)):
        save(root / f"new/{index:04d}.png", picture(rng, (32, 48), COLOURS[new_colour]))
        save(root / f"old/{index:04d}.jpg", picture(rng, SIZE, COLOURS[old_colour]))
    return root


def make_nyu(
    root: Path,
    n_train: int = 4,
    n_val: int = 3,
    size: tuple[int, int] = (64, 48),
    scenes: bool = False,
) -> Path:
    """Depth (16-bit millimetres, some 0) and normals (8-bit RGB, some invalid); in scene folders
    when ``scenes``."""
    rng = np.random.default_rng(0)
    for part, number in {"train": n_train, "test": n_val}.items():
        for index in range(number):
            name = f"{part}/kitchen_{index:04d}/frame" if scenes else f"{part}/nyu_{index:04d}"
            save(root / f"images/{name}.jpg", picture(rng, size))
            depth = rng.integers(700, 9900, (size[1], size[0]), dtype=np.uint16)
            depth[0] = 0
            save(root / f"annotations/{name}.png", depth)
            normals = rng.normal((0, 0, 2), 1, (size[1], size[0], 3))
            normals /= np.linalg.norm(normals, axis=2, keepdims=True)
            stored = np.rint((normals + 1) * 127.5).astype(np.uint8)
            stored[:2] = 0
            save(root / f"normals/{name}.png", stored)
    return root


def make_imagefolder(
    root: Path,
    n_train: int = 4,
    n_val: int = 3,
    size: tuple[int, int] = (40, 32),
    classes: Sequence[str] = tuple(COLOURS),
) -> Path:
    """``n_train`` and ``n_val`` images of each class, whose colour is the class where its name is a
    colour."""
    rng = np.random.default_rng(0)
    for split, number in {"train": n_train, "val": n_val}.items():
        for name in classes:
            for index in range(number):
                image = picture(rng, size, COLOURS.get(name, (128, 128, 128)))
                save(root / f"{split}/{name}/{index:04d}.JPEG", image, format="JPEG")
    return root


def make_flickr(root: Path, n_train: int = 4, n_test: int = 3, name: str = "flickr30k") -> Path:
    """Karpathy's json (with a val split that is not used) and images of the colour that their five
    captions name."""
    rng = np.random.default_rng(0)
    entries: list[dict] = []
    for split, number in {"train": n_train, "val": 1, "test": n_test}.items():
        for index in range(number):
            colour = list(COLOURS)[index % len(COLOURS)]
            filename = f"{split}{index:04d}.jpg"
            save(root / f"images/{filename}", picture(rng, (40, 32), COLOURS[colour]))
            captions = [f"A {colour} thing, seen {n} times in {filename} ." for n in range(5)]
            sentences = [{"raw": caption} for caption in captions]
            entries.append({"filename": filename, "split": split, "sentences": sentences})
    (root / f"dataset_{name}.json").write_text(json.dumps({"dataset": name, "images": entries}))
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def encoded(array: np.ndarray, suffix: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, suffix)
    return buffer.getvalue()


def make_wds(
    root: Path,
    n_train: int = 4,
    n_test: int = 3,
    size: tuple[int, int] = (40, 32),
    classes: Sequence[str] = tuple(COLOURS),
    templates: Sequence[str] = ("a photo of a {c}.", "{c}, seen from afar"),
    groups: int = 0,
    captions: int = 0,
) -> Path:
    """A webdataset folder: each class's images in two shards of a split, whose colour is the class
    where its name is a colour.

    Args:
        groups: images have a KEY.npy with their group, in turn, and another number.
        captions: images have so many captions, and no class; the first is the same for images of
            one class.
    """
    rng = np.random.default_rng(0)
    if captions:
        write_lines(root / "dataset_type.txt", ["retrieval"])
    else:
        write_lines(root / "classnames.txt", classes)
        write_lines(root / "zeroshot_classification_templates.txt", templates)
    for split, number in {"train": n_train, "test": n_test}.items():
        shards: list[dict[str, bytes]] = [{}, {}]
        for index in range(number * len(classes)):
            label, key = index % len(classes), f"s{index:07d}"
            colour = COLOURS.get(classes[label], (128, 128, 128))
            members = {f"{key}.png": encoded(picture(rng, size, colour))}
            if captions:
                texts = [
                    f"a {classes[label]} thing",
                    *(f"{split} {index} is {n}" for n in range(1, captions)),
                ]
                members[f"{key}.txt"] = "\n".join(texts).encode()
            else:
                members[f"{key}.cls"] = str(label).encode()
            if groups:
                buffer = io.BytesIO()
                np.save(buffer, np.array([(index // len(classes)) % groups, 7]))
                members[f"{key}.npy"] = buffer.getvalue()
            shards[2 * index // (number * len(classes))] |= members
        for name, shard in enumerate(shards if number else []):
            write_tar(root / split / f"{name}.tar", shard)
        if number:
            write_lines(root / split / "nshards.txt", [str(len(shards))])
    return root


SPOT_COLOURS = [(230, 20, 20), (20, 230, 20), (20, 20, 230)]
SPOTS = [(32, 32), (96, 32), (32, 96)]


def _write_spots(
    path: Path, points: Sequence[tuple[int, int]], size: tuple[int, int], radius: int = 8
) -> None:
    """Spots of different colours at (x, y) on grey."""
    pixels = np.full((size[1], size[0], 3), 120, np.uint8)
    for (x, y), colour in zip(points, SPOT_COLOURS, strict=True):
        pixels[y - radius : y + radius, x - radius : x + radius] = colour
    save(path, pixels, quality=98)


def make_spair(root: Path) -> Path:
    """SPair-71k with two categories: the spots of the cats moved and the image has another shape;
    the annotation of the dogs has two colours swapped."""
    cats = [(24, 24), (120, 40), (40, 104)], (160, 128)
    dogs = [(96, 32), (32, 32), (32, 96)], (128, 128)
    for split, number in (("test", 1), ("trn", 2)):
        (root / f"PairAnnotation/{split}").mkdir(parents=True)
        names = []
        for category, (points, size) in {"cat": cats, "dog": dogs}.items():
            folder = root / f"JPEGImages/{category}"
            _write_spots(folder / f"{number}_a.jpg", SPOTS, (128, 128))
            _write_spots(folder / f"{number}_b.jpg", points if category == "cat" else SPOTS, size)
            names.append(f"00000{number}-{number}_a-{number}_b:{category}")
            annotation = {
                "category": category,
                "src_imname": f"{number}_a.jpg",
                "trg_imname": f"{number}_b.jpg",
                "src_kps": SPOTS,
                "trg_kps": points,
                "trg_bndbox": [16, 16, 116, 96],
            }
            path = root / f"PairAnnotation/{split}/{names[-1]}.json"
            path.write_text(json.dumps(annotation))
        write_lines(root / f"Layout/large/{split}.txt", names)
    return root


def make_winogavil(root: Path) -> list[dict]:
    """Cues name colours; candidates of that colour are associated, of the last cue others. Returns
    the cues."""
    rng = np.random.default_rng(0)
    names = [f"{colour}{number}" for colour in COLOURS for number in range(3)]
    images = {f"{name}.png": encoded(picture(rng, (40, 32), COLOURS[name[:-1]])) for name in names}
    write_tar(root / "test/0.tar", images)
    cues = [
        {"cue": "Red", "candidates": names, "associations": ["red0", "red1", "red2"]},
        {"cue": "blue", "candidates": names[2:8], "associations": names[6:8]},
        {"cue": "red", "candidates": names[2:7], "associations": ["green0"]},
    ]
    (root / "instances.json").write_text(json.dumps(cues))
    return cues


def make_nights(root: Path, wrong: Sequence[int] = ()) -> Path:
    """Eight triplets, of which the last two are of another split and of five votes; people chose
    the image of another colour in those of ``wrong``."""
    columns = "id,left_vote,right_vote,votes,ref_path,left_path,right_path,split,is_imagenet,prompt"
    rng = np.random.default_rng(0)
    colours = list(COLOURS.values())
    rows = []
    for number in range(8):
        right = number % 2
        names = [
            f"ref/000/{number:03d}.png",
            *(f"distort/000/{number:03d}_{k}.png" for k in (0, 1)),
        ]
        shown = [number, number + right, number + 1 - right]
        for name, colour in zip(names, shown, strict=True):
            save(root / name, picture(rng, (48, 48), colours[colour % 4]))
        vote = 1 - right if number in wrong else right
        split, votes = ("val" if number == 6 else "test"), (5 if number == 7 else 6)
        rows.append(
            [number, 1 - vote, vote, votes, *names, split, str(number < 2).upper(), "a dog"]
        )
    with (root / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    return root


VOC_COLOURS = {"red": "aeroplane", "green": "dog", "blue": "person"}


def make_voc2007(root: Path, n_train: int = 12, n_test: int = 9) -> Path:
    """Images of one or two colours, each of which is a class; of the third image of a split the
    first class is difficult."""
    rng = np.random.default_rng(0)
    for part, number in {"trainval": n_train, "test": n_test}.items():
        names = [f"{part}{index:06d}" for index in range(number)]
        colours = {
            name: list(VOC_COLOURS)[index % 3 :][: 1 + index % 2]
            for index, name in enumerate(names)
        }
        for name in names:
            halves = [picture(rng, (24, 40), COLOURS[each]) for each in colours[name]]
            save(root / f"JPEGImages/{name}.jpg", np.hstack(halves), quality=95)
        write_lines(root / f"ImageSets/Main/{part}.txt", names)
        for subject in VOC_CLASSES:
            values = {
                name: 1 if subject in [VOC_COLOURS[each] for each in colours[name]] else -1
                for name in names
            }
            if subject == "aeroplane":
                values[names[2]] = 0
            lines = (f"{name} {value:2d}" for name, value in values.items())
            write_lines(root / f"ImageSets/Main/{subject}_{part}.txt", lines)
    return root


def boundary_scene(seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Boundaries by three people, and noisy edges along those of one."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal((60, 80)), 5)
    people = []
    for shift in (-0.02, 0, 0.03):
        label = field > shift * field.std() * 10
        people.append((label != np.roll(label, 1, 0)) | (label != np.roll(label, 1, 1)))
    edges = ndimage.gaussian_filter(people[1].astype(float), 1.5)
    return edges / edges.max() * 0.7 + 0.3 * rng.random(edges.shape), people


def make_bsds(root: Path) -> Path:
    """BSDS500's folders and ``.mat`` files, with images of two scenes for each part."""
    for number, part in enumerate(("train", "val", "test")):
        for folder in ("images", "groundTruth"):
            (root / folder / part).mkdir(parents=True)
        for seed in (2 * number, 2 * number + 1):
            edges, people = boundary_scene(seed)
            image = Image.fromarray((255 * edges).astype(np.uint8)).convert("RGB")
            image.save(root / f"images/{part}/{seed}.jpg")
            cell = np.empty((1, len(people)), object)
            cell[0] = [{"Segmentation": 0, "Boundaries": each} for each in people]
            savemat(root / f"groundTruth/{part}/{seed}.mat", {"groundTruth": cell})
    return root
