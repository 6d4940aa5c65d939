"""Images: decoded in threads, of any mode and size, or refused."""

import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxprune.errors import DataError
from onnxprune.evaluate.datasets import load_dataset
from onnxprune.evaluate.images import EncodedImage, in_threads
from onnxprune.evaluate.preprocess import Preprocess
from onnxprune.profile.spec import TensorSpec
from tests.evaluate.models import as_inputs, pixels, save_png
from tests.evaluate.test_datasets import IMAGES, refused

SPEC = TensorSpec("x", np.dtype(np.float32), (None, 3, 8, 8))
COUNT = 20


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of images of many sizes."""
    random = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = random.integers(0, 256, (9 + number, 30 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    return tmp_path


@pytest.mark.parametrize("threads", [1, 2, 7, None])
def test_threads_change_nothing(photos: Path, threads: int | None) -> None:
    """Every image is where a plain loop over the files puts it."""
    data = load_dataset(photos, SPEC, preprocess=Preprocess(crop=8, scale=1.0), threads=threads)
    loop = []
    for number in range(COUNT):
        pixels = np.asarray(Image.open(photos / f"{number:02}.png"))
        top, left = round((pixels.shape[0] - 8) / 2), round((pixels.shape[1] - 8) / 2)
        loop.append(pixels[top : top + 8, left : left + 8].transpose(2, 0, 1))
    assert np.array_equal(data.arrays().inputs, np.stack(loop))
    assert np.array_equal(data.in_memory().arrays().inputs, np.stack(loop))


def test_the_first_image_that_fails_is_named(photos: Path) -> None:
    """However the threads are scheduled."""
    for number in (5, 6, 17):
        (photos / f"{number:02}.png").write_bytes(b"not an image")
    data = load_dataset(photos, SPEC, preprocess=Preprocess(crop=8, scale=1.0), threads=4)
    with pytest.raises(DataError, match=r"05\.png is not an image"):
        data.arrays()


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_images_than_threads_are_held(threads: int) -> None:
    """Decoded photos are large. As many as there are threads are decoded at once."""
    lock, held, most = threading.Lock(), 0, 0
    together = threading.Barrier(threads)

    def work(image: EncodedImage) -> str:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        together.wait(timeout=60)
        with lock:
            held -= 1
        return image.name

    images = [EncodedImage(b"", str(number)) for number in range(4 * threads)]
    assert in_threads(work, images, threads) == [image.name for image in images]
    assert most == threads


def test_filters_of_warnings_are_as_before(photos: Path) -> None:
    """They belong to the process, and each thread changes them for a moment."""
    before = list(warnings.filters)
    data = load_dataset(photos, SPEC, preprocess=Preprocess(crop=8, scale=1.0), threads=8)
    for _ in range(20):
        data.arrays()
    assert warnings.filters == before


def test_large_images_are_read_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    for number in range(4):
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert (
        load_dataset(tmp_path, SPEC, preprocess=Preprocess(crop=8), threads=4).arrays().inputs.shape[0] == 4
    )
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_images_of_32_bit_pixels_are_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(IMAGES[0, ..., 0].astype(dtype)).save(tmp_path / "deep.tif")
    text = refused(lambda: load_dataset(tmp_path, SPEC))
    assert "deep.tif opens with 32-bit pixels" in text and "convert it" in text


def test_images_of_16_bits_keep_their_upper_8(tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0, ..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    gray = TensorSpec("x", np.dtype(np.float32), (None, 1, 8, 8))
    assert np.array_equal(load_dataset(tmp_path, gray).arrays().inputs, as_inputs(IMAGES[:1, ..., :1]))


def test_images_that_are_decompression_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_png(IMAGES[0], tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert "too large to decode" in refused(lambda: load_dataset(tmp_path, SPEC))


def test_photos_are_fitted_but_never_enlarged_unasked(tmp_path: Path) -> None:
    tall = pixels(1, size=40)[0][:, :20]
    save_png(tall, tmp_path / "large" / "a.png")
    fitted = load_dataset(tmp_path / "large", SPEC).arrays().inputs
    by_hand = Image.fromarray(tall).resize((8, 16), Image.Resampling.BILINEAR).crop((0, 4, 8, 12))
    assert np.array_equal(fitted, as_inputs(np.asarray(by_hand)[None]))
    save_png(tall[:5, :20], tmp_path / "small" / "a.png")
    assert "smaller than the model's input" in refused(lambda: load_dataset(tmp_path / "small", SPEC))
    enlarged = load_dataset(tmp_path / "small", SPEC, preprocess=Preprocess(resize=8)).arrays().inputs
    assert enlarged.shape == (1, 3, 8, 8)


def test_images_of_different_sizes_for_a_model_without_a_size(tmp_path: Path) -> None:
    spec = TensorSpec("input", np.dtype(np.float32), (None, 3, None, None))
    save_png(IMAGES[0], tmp_path / "a.png")
    save_png(pixels(1, size=9)[0], tmp_path / "b.png")
    dataset = load_dataset(tmp_path, spec)
    assert "differ in size" in refused(lambda: dataset.arrays())
    assert load_dataset(tmp_path, spec, preprocess=Preprocess(resize=8)).arrays().inputs.shape == (2, 3, 8, 8)
