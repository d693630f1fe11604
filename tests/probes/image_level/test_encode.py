"""Embeddings of whole images: prepared as the field does it, in order, whatever the number of
loader processes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from backbones.base import DataConfig
from common.errors import NonFiniteLoss, UserError
from probes.features.cost import EncodeRun
from probes.image_level.encode import Images, encode_images, encode_texts, eval_transform
from probes.image_level.settings import Encoding
from tests.probes.datasets import make
from tests.probes.whole_images import Bar, Colours

CPU = torch.device("cpu")
PLAIN = DataConfig((32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """21 images of all shapes and modes."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    found = []
    for index in range(21):
        size = tuple(int(side) for side in rng.integers(20, 90, 2))
        image = Image.fromarray(make.picture(rng, size, rng.integers(0, 256, 3)))
        mode = ["RGB", "L", "RGBA", "P", "CMYK", "1"][index % 6]
        path = root / f"{index:02d}.{'jpg' if mode in ('RGB', 'L', 'CMYK') else 'png'}"
        image.convert(mode).save(path)
        found.append(path)
    return found


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
def test_it_is_torchvision_resize_centre_crop_normalise(paths, interpolation, crop_pct):
    backbone = Colours((32, 32), interpolation, crop_pct)
    usual = transforms.Compose(
        [
            transforms.Resize(int(32 / crop_pct), InterpolationMode(interpolation)),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(backbone.data.mean, backbone.data.std),
        ]
    )
    wanted = torch.cat(
        [backbone.encode_image(usual(Image.open(p).convert("RGB"))[None]) for p in paths]
    )
    found = encode_images(backbone, paths, EncodeRun(CPU, 0), Encoding(batch_size=4))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(paths, workers):
    backbone = Colours()
    here = encode_images(backbone, paths, EncodeRun(CPU, 0), Encoding(batch_size=4))
    assert torch.equal(
        encode_images(backbone, paths, EncodeRun(CPU, workers), Encoding(batch_size=4)), here
    )
    torch.testing.assert_close(
        encode_images(backbone, paths, EncodeRun(CPU, workers), Encoding(batch_size=7)), here
    )


def test_order_size_progress_and_memory_format(paths):
    backbone, bar = Colours(cnn=True), Bar()
    formats = []
    encode = backbone.encode_image
    backbone.encode_image = lambda x: (
        formats.append(x.is_contiguous(memory_format=torch.channels_last)) or encode(x)
    )
    forward = encode_images(
        backbone, paths, EncodeRun(CPU, 2, bar), Encoding(size=(24, 40), batch_size=8)
    )
    assert [tuple(shape) for shape in backbone.seen] == [
        (8, 3, 24, 40),
        (8, 3, 24, 40),
        (5, 3, 24, 40),
    ]
    assert all(formats)
    assert bar.started == [("encoding images", 21)]
    assert bar.done == 21
    backward = encode_images(
        backbone, paths[::-1], EncodeRun(CPU, 2), Encoding(size=(24, 40), batch_size=8)
    )
    torch.testing.assert_close(backward.flip(0), forward)


def test_bfloat16_is_near(paths):
    exact = encode_images(Colours(), paths, EncodeRun(CPU, 0))
    rough = encode_images(Colours(), paths, EncodeRun(CPU, 0), Encoding(precision="bf16"))
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)


def test_bad_input_is_one_line(paths, tmp_path):
    broken = make.truncate(make.save(tmp_path / "x.jpg", np.zeros((60, 60, 3), np.uint8)))
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"cannot read .*x\.jpg") as caught:
            encode_images(Colours(), [*paths, broken], EncodeRun(CPU, workers))
        assert "\n" not in str(caught.value)
    assert encode_images(Colours((30, 30)), paths, EncodeRun(CPU, 0)).shape == (
        21,
        8,
    )  # its own size is never refused
    with pytest.raises(UserError, match="multiples of 4"):
        encode_images(Colours(), paths, EncodeRun(CPU), Encoding(size=(30, 32)))


def test_embeddings_that_are_not_finite_end_it(paths):
    backbone = Colours()
    backbone.projection[0, 0] = torch.nan
    with pytest.raises(NonFiniteLoss, match="image embeddings of colours"):
        encode_images(backbone, paths, EncodeRun(CPU, 0))
    with pytest.raises(NonFiniteLoss, match="text embeddings of colours"):
        encode_texts(backbone, ["red"], EncodeRun(CPU))


def test_no_images_no_embeddings():
    assert encode_images(Colours(), [], EncodeRun(CPU)).shape == (0, 8)


def test_texts_keep_their_order():
    texts = ["red", "green", "blue", "white", "none"]
    one_by_one = torch.cat([Colours().encode_text([text]) for text in texts])
    torch.testing.assert_close(
        encode_texts(Colours(), texts, EncodeRun(CPU), batch_size=2), one_by_one
    )


@settings(max_examples=80, deadline=None)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    size=st.tuples(st.integers(4, 64), st.integers(4, 64)),
    crop_pct=st.sampled_from([1.0, 0.95, 0.875, 0.5]),
)
def test_the_crop_is_covered_without_padding(width, height, size, crop_pct):
    white = Image.new("RGB", (width, height), (255, 255, 255))
    fitted = eval_transform(size, replace(PLAIN, crop_pct=crop_pct))(white)
    assert fitted.shape == (3, *size) and fitted.dtype == torch.uint8
    assert fitted.min() == 255  # CenterCrop would pad with black


@settings(max_examples=40, deadline=None)
@given(width=st.integers(8, 120), height=st.integers(8, 120), side=st.integers(8, 48))
def test_squares_are_torchvision_resize_and_centre_crop(width, height, side):
    image = Image.fromarray(make.picture(np.random.default_rng(width), (width, height)))
    usual = transforms.Compose([transforms.Resize(int(side / 0.875)), transforms.CenterCrop(side)])(
        image
    )
    found = eval_transform((side, side), replace(PLAIN, crop_pct=0.875))(image)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(usual))


def test_squash_keeps_the_whole_picture(tmp_path):
    """SigLIP's way: no crop, the shape is not kept."""
    picture = np.zeros((20, 80, 3), np.uint8)
    picture[:, :20, 0] = (
        255  # red at the left end, green at the right: a centre crop would lose both
    )
    picture[:, 60:, 1] = 255
    path = tmp_path / "wide.png"
    Image.fromarray(picture).save(path)
    data = DataConfig((16, 16), (0.5,) * 3, (0.5,) * 3, squash=True)
    squashed = Images([path], (16, 16), data)[0]
    cropped = Images([path], (16, 16), replace(data, squash=False))[0]
    assert squashed.shape == cropped.shape == (3, 16, 16)
    assert squashed[0, 8, 0] > 250
    assert squashed[1, 8, -1] > 250
    assert cropped.max() == 0
