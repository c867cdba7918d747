"""`Predictor.predict` takes an image in any form, and finds the same mask in each."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from segan.data.synthetic import generate_pair
from segan.errors import RejectedError, StorageError, UsageError
from segan.inference.images import ImageSource, to_image
from segan.inference.predictor import Prediction, Predictor
from segan.runs.run import Run
from tests.inference.models import save_checkpoint, small_config, untrained_predictor

SIZE = (90, 68)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return untrained_predictor()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """uint8 [H, W, 3]"""
    return generate_pair(0, 0, SIZE)[0]


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def turned(pixels: np.ndarray) -> bytes:
    """A PNG that is stored a quarter turn to the left, with the orientation that says so."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return encode(Image.fromarray(np.rot90(pixels).copy()), exif=exif)


def sources(pixels: np.ndarray, folder: Path) -> dict[str, ImageSource]:
    """The same image in every form that is taken."""
    image = Image.fromarray(pixels)
    path = folder / "ISIC_0000000.png"
    image.save(path)
    floats = pixels.astype(np.float32) / 255
    return {
        "path": path,
        "string": str(path),
        "bytes": path.read_bytes(),
        "image": image,
        "opened file": Image.open(path),
        "turned bytes": turned(pixels),
        "turned image": Image.open(io.BytesIO(turned(pixels))),
        "RGBA": image.convert("RGBA"),
        "uint8": pixels,
        "uint16": pixels.astype(np.uint16) * 257,
        "float32": floats,
        "float64": floats.astype(np.float64),
        "view": np.asfortranarray(pixels)[::1],
    }


def test_every_form_of_an_image_is_the_same_image(pixels: np.ndarray, tmp_path: Path) -> None:
    for name, source in sources(pixels, tmp_path).items():
        found = to_image(source)
        assert found.mode == "RGB", name
        np.testing.assert_array_equal(np.asarray(found), pixels, err_msg=name)


def test_grey_images_are_grey_in_every_form(pixels: np.ndarray) -> None:
    grey = pixels[..., 0].copy()
    deep = grey.astype(np.uint16) * 257
    for source in (
        grey,
        grey[..., None],
        grey / 255.0,
        deep,
        Image.fromarray(grey),
        encode(Image.fromarray(deep)),
        encode(Image.fromarray(deep), "TIFF"),
    ):
        np.testing.assert_array_equal(np.asarray(to_image(source)), np.dstack([grey] * 3))


def test_a_list_gives_a_list_and_one_image_one_prediction(
    predictor: Predictor, pixels: np.ndarray, tmp_path: Path
) -> None:
    one = predictor.predict(pixels)
    assert isinstance(one, Prediction)
    assert one.mask.shape == one.probability.shape == SIZE[::-1]
    several = predictor.predict([*sources(pixels, tmp_path).values()])
    assert len(several) == len(sources(pixels, tmp_path))
    for found in several:
        np.testing.assert_array_equal(found.probability, one.probability)
    assert predictor.predict([]) == []
    *_, mean = predictor.predict_members(tmp_path / "ISIC_0000000.png")
    np.testing.assert_array_equal(mean.mask, one.mask)


def test_sizes_of_a_list_may_differ(predictor: Predictor, pixels: np.ndarray) -> None:
    found = predictor.predict((pixels, pixels[:40], pixels[:, :50]))
    assert [one.mask.shape for one in found] == [(68, 90), (40, 90), (68, 50)]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 68, 90), np.uint8), r"found the shape \[3, 68, 90\]; channels come last"),
        (np.zeros((68, 90, 4), np.uint8), r"found the shape \[68, 90, 4\]$"),
        (np.zeros((1, 68, 90, 3), np.uint8), r"found the shape \[1, 68, 90, 3\]"),
        (np.zeros(90, np.uint8), r"found the shape \[90\]"),
        (np.zeros((68, 90, 3), np.int32), "found int32"),
        (np.full((68, 90, 3), 200.0), "found floats from 200 to 200"),
        (np.full((68, 90, 3), -0.1), "found floats from -0.1"),
        (np.full((68, 90, 3), np.nan), "found floats from nan"),
        (np.zeros((68, 90), bool), "found bool"),
    ],
)
def test_an_array_that_is_no_image_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=rf"expected an array \[height, width, 3\].*{message}"):
        to_image(array)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a path, bytes, .* found float"):
        to_image(1.5)  # type: ignore[arg-type]
    with pytest.raises(RejectedError, match="the image: expected an image"):
        to_image(b"no image")
    with pytest.raises(RejectedError, match="at least 16 pixels"):
        to_image(encode(Image.new("RGB", (8, 8))))
    with pytest.raises(RejectedError, match="transparent"):
        to_image(Image.new("RGBA", SIZE))
    with pytest.raises((RejectedError, StorageError), match=r"none\.png"):
        to_image(tmp_path / "none.png")


def test_a_device_is_used_or_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    uri = save_checkpoint(Run(str(tmp_path / "run")), small_config(), 1, 0.5, 0.5)
    on_cpu, default = Predictor.load(uri, device="cpu"), Predictor.load(uri)
    np.testing.assert_array_equal(on_cpu.predict(pixels).mask, default.predict(pixels).mask)
    assert str(on_cpu.members[0].device) == "cpu"
    for name in ("cuda:99", "toaster"):
        with pytest.raises(UsageError, match=f"device {name}: expected one such as cpu"):
            Predictor.load(uri, device=name)
