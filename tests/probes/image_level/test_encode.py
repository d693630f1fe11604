"""Embeddings of whole images: prepared as the field does it, in order, whatever the number of
loader processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from cliptex_common.errors import NonFiniteLoss, UserError
from probes.base import Context, EncodeContext
from probes.datasets.base import PreparedDataset
from probes.image_level.encode import ImageViews, encode_texts
from probes.image_level.settings import EncodeSettings, Encoding
from tests.probes import tiny_mmlab
from tests.probes.datasets import make
from tests.probes.whole_images import Colours
from tests.recorder import Recorder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """21 images of all shapes and modes."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    files = []
    for index in range(21):
        size = tuple(int(side) for side in rng.integers(20, 90, 2))
        image = Image.fromarray(make.picture(rng, size, rng.integers(0, 256, 3)))
        mode = ["RGB", "L", "RGBA", "P", "CMYK", "1"][index % 6]
        suffix = "jpg" if mode in ("RGB", "L", "CMYK") else "png"
        files.append(root / f"{index:02d}.{suffix}")
        image.convert(mode).save(files[-1])
    return files


def encode(backbone, paths, workers=0, **options):
    views = ImageViews(EncodeContext(CPU, workers), backbone, paths, Encoding(**options))
    return torch.cat(list(views.tensors()))


def task(backbone):
    return Context(
        CPU,
        backbone=backbone,
        backbone_config={},
        data=PreparedDataset(tiny_mmlab.TOY.name, Path("nowhere"), {}),
        settings=EncodeSettings(),
        seed=0,
        work_dir=Path("nowhere"),
        log=Recorder(),
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
def test_it_is_torchvision_resize_centre_crop_normalise(paths, interpolation, crop_pct):
    backbone = Colours((32, 32), interpolation, crop_pct)
    transform = transforms.Compose(
        [
            transforms.Resize(int(32 / crop_pct), InterpolationMode(interpolation)),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(backbone.data.mean, backbone.data.std),
        ]
    )
    images = [transform(Image.open(path).convert("RGB"))[None] for path in paths]
    expected = torch.cat([backbone.encode_image(image) for image in images])
    embeddings = encode(backbone, paths, batch_size=4)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-5)


def test_order_size_progress_and_memory_format(paths):
    backbone, bar = Colours(cnn=True), Recorder()
    channels_last = []
    encode_image = backbone.encode_image

    def spy(images):
        channels_last.append(images.is_contiguous(memory_format=torch.channels_last))
        return encode_image(images)

    backbone.encode_image = spy
    encoding = Encoding(size=(24, 40), batch_size=8)
    forward = ImageViews(EncodeContext(CPU, 2, bar), backbone, paths, encoding, "toys").embeddings()
    assert [tuple(shape) for shape in backbone.seen] == [(n, 3, 24, 40) for n in (1, 8, 8, 5)]
    assert all(channels_last)
    assert bar.started == [("encoding colours on toys", 21)] and bar.advanced == 21
    backward = encode(backbone, paths[::-1], 2, size=(24, 40), batch_size=8)
    torch.testing.assert_close(backward.flip(0), forward)


def test_bad_input_is_one_line(paths, tmp_path):
    broken = make.truncate(make.save(tmp_path / "x.jpg", np.zeros((60, 60, 3), np.uint8)))
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"cannot read .*x\.jpg") as error:
            encode(Colours(), [*paths, broken], workers)
        assert "\n" not in str(error.value)
    assert encode(Colours((30, 30)), paths).shape == (21, 8)  # its own size is never refused
    with pytest.raises(UserError, match="multiples of 4"):
        encode(Colours(), paths, size=(30, 32))


def test_embeddings_that_are_not_finite_raise(paths):
    backbone = Colours()
    backbone.projection[0, 0] = torch.nan
    with pytest.raises(NonFiniteLoss, match="features of colours on toys"):
        ImageViews(EncodeContext(CPU, 0), backbone, paths, Encoding(), "toys").embeddings()
    with pytest.raises(NonFiniteLoss, match="text embeddings of colours"):
        encode_texts(task(backbone), ["red"])


def test_texts_keep_their_order(monkeypatch):
    monkeypatch.setattr("probes.image_level.encode.TEXTS", 2)
    texts = ["red", "green", "blue", "white", "none"]
    singly = torch.cat([Colours().encode_text([text]) for text in texts])
    embeddings = encode_texts(task(Colours()), texts)
    torch.testing.assert_close(embeddings, singly)
