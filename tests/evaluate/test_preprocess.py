from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxprune.errors import DataError, UsageError
from onnxprune.evaluate.images import EncodedImage
from onnxprune.evaluate.preprocess import (
    METADATA_KEY,
    Preprocess,
    guess_layout,
    preprocess_of,
    record_preprocess,
)
from onnxprune.evaluate.transform import Transform
from onnxprune.profile.spec import TensorSpec, describe_shape
from tests.evaluate.models import classifier, pixels


def spec(*shape: int | None, dtype: type = np.float32) -> TensorSpec:
    return TensorSpec("input", np.dtype(dtype), (None, *shape))


def run(images: np.ndarray, target: TensorSpec, **options: object) -> np.ndarray:
    return Transform.bind(Preprocess(**options) if options else None, target, images[:1])(images)


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 1 / 255),
        ({"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}, 1 / 255),
        ({"mean": 0.5, "std": 0.5}, 1 / 255),
        ({"mean": 1, "std": 1}, 1 / 255),
        ({"mean": (123.68, 116.779, 103.939)}, 1.0),
        ({"mean": 127.5, "std": 127.5}, 1.0),
        ({"std": 255}, 1.0),
        ({"scale": 1}, 1.0),
        ({"scale": 2.0, "mean": 0.5}, 2.0),
        ({"scale": 1 / 255, "mean": 2}, 1 / 255),
    ],
)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_formula(options: dict[str, object], scale: float, layout: str) -> None:
    """(x * scale - mean) / std in float64, rounded once."""
    images = pixels(3)
    mean = np.broadcast_to(np.asarray(options.get("mean", 0.0)), 3)
    std = np.broadcast_to(np.asarray(options.get("std", 1.0)), 3)
    expected = ((images * scale - mean) / std).astype(np.float32)
    if layout == "nchw":
        expected = expected.transpose(0, 3, 1, 2)
    target = spec(3, 8, 8) if layout == "nchw" else spec(8, 8, 3)
    assert np.array_equal(run(images, target, **options), expected)


def test_colors() -> None:
    images = pixels(2)
    rgb = run(images, spec(3, 8, 8), scale=1, mean=(1, 2, 3))
    bgr = run(images, spec(3, 8, 8), scale=1, mean=(3, 2, 1), color="bgr")
    assert np.array_equal(bgr, rgb[:, ::-1])
    gray = run(images, spec(1, 8, 8), scale=1)
    by_hand = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    assert np.array_equal(gray[:, 0], by_hand)


def encoded(image: Image.Image) -> EncodedImage:
    """The image as a TIFF, which holds every mode."""
    stream = io.BytesIO()
    image.save(stream, "TIFF")
    return EncodedImage(stream.getvalue(), "image.tif")


def test_images_of_every_mode_become_the_color_asked_for() -> None:
    rgb = Image.fromarray(pixels(1)[0])
    for mode in ("RGBA", "CMYK", "P", "L", "1", "LA"):
        image = rgb.convert(mode)
        transform = Transform.bind(Preprocess(scale=1), spec(3, 8, 8), [encoded(image)])
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(transform([encoded(image)])[0], expected)
    deep = Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(np.uint16))
    transform = Transform.bind(Preprocess(scale=1), spec(1, 8, 8), [encoded(deep)])
    assert np.array_equal(transform([encoded(deep)])[0, 0], np.arange(64).reshape(8, 8) * 1000 // 256)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(4, 40), width=st.integers(4, 40), resize=st.integers(4, 30), data=st.data())
def test_resize_and_crop_geometry(height: int, width: int, resize: int, data: st.DataObject) -> None:
    crop = data.draw(st.integers(1, resize))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))
    sample = encoded(image)
    transform = Transform.bind(Preprocess(scale=1, resize=resize, crop=crop), spec(3, None, None), [sample])
    # The usual recipe: shorter side to `resize`, the longer cut to an integer; then the centre.
    if width <= height:
        size = (resize, int(resize * height / width))
    else:
        size = (int(resize * width / height), resize)
    resized = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    expected = np.asarray(resized.crop((left, top, left + crop, top + crop)))
    assert np.array_equal(transform([sample])[0].transpose(1, 2, 0), expected)
    # Its own result goes through unchanged by the arithmetic that follows.
    assert transform.geometry([sample]).shape == (1, crop, crop, 3)


def test_exact_sizes_and_the_crop_that_resize_implies() -> None:
    images = pixels(2, size=20)
    both = run(images, spec(3, 8, 12), scale=1, resize=(8, 12))
    by_hand = [
        np.asarray(Image.fromarray(image).resize((12, 8), Image.Resampling.BILINEAR)) for image in images
    ]
    assert np.array_equal(both.transpose(0, 2, 3, 1), np.stack(by_hand))
    implied = run(images, spec(3, 8, 8), resize=10)
    assert np.array_equal(implied, run(images, spec(3, 8, 8), resize=10, crop=8))
    with pytest.raises(DataError, match="smaller than the crop"):
        run(images, spec(3, 8, 8), resize=6)


def test_integer_inputs_take_whole_numbers() -> None:
    images = pixels(2)
    assert np.array_equal(run(images, spec(8, 8, 3, dtype=np.uint8)), images)
    shifted = run(images, spec(8, 8, 3, dtype=np.int8), mean=128)
    assert shifted.dtype == np.int8
    assert np.array_equal(shifted, images.astype(int) - 128)
    clipped = run(images, spec(8, 8, 3, dtype=np.uint8), scale=2)
    assert np.array_equal(clipped, np.minimum(images.astype(int) * 2, 255))


def test_float_arrays_are_cropped_but_not_resized() -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 10, 12)).astype(np.float32)
    assert np.array_equal(run(values, spec(3, 8, 8), crop=8), values[:, :, 1:9, 2:10])
    turned = np.ascontiguousarray(values.transpose(0, 2, 3, 1))
    assert np.array_equal(run(turned, spec(8, 8, 3), crop=8), turned[:, 1:9, 2:10])
    with pytest.raises(DataError, match="can't be resized"):
        run(values, spec(3, 8, 8), resize=8)
    with pytest.raises(DataError, match="smaller than the crop"):
        run(values, spec(3, 16, 16), crop=16)
    with pytest.raises(DataError, match="can't be resized or cropped"):
        run(values[:, :, 0, 0], spec(3), crop=8)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((3, 8, 8), "nchw"),
        ((8, 8, 3), "nhwc"),
        ((1, 28, 28), "nchw"),
        ((28, 28, 1), "nhwc"),
        ((3, 3, 3), "nchw"),
        ((16, 16, 16), "nchw"),
        ((None, 8, 8), "nchw"),
        ((None, None, 3), "nhwc"),
        ((5,), "nchw"),
    ],
)
def test_layouts_are_read_from_the_shape(shape: tuple[int | None, ...], layout: str) -> None:
    assert guess_layout(spec(*shape)) == layout


@pytest.mark.parametrize(
    "options",
    [
        {"mean": "a,b"},
        {"mean": ()},
        {"mean": (0.1, float("nan"))},
        {"std": 0},
        {"std": (1, 0, 1)},
        {"scale": 0},
        {"scale": "x"},
        {"resize": 0},
        {"resize": "big"},
        {"resize": 8.7},
        {"resize": True},
        {"crop": "8.7"},
        {"crop": (8, 8.0)},
        {"mean": True},
        {"std": (1.0, True)},
        {"scale": True},
        {"resize": (1, 2, 3)},
        {"crop": -4},
        {"crop": 10**6},
        {"layout": "chwn"},
        {"color": "cmyk"},
        {"color": 3},
    ],
)
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        Preprocess(**options)
    assert f"--{next(iter(options))}" in str(caught.value)


def test_options_in_every_writing() -> None:
    written = Preprocess(
        mean="0.1, 0.2 0.3",
        std=[1, 2, 3],
        scale="0.5",
        resize="256",
        crop="224x200",
        layout="NHWC",
        color="BGR",
    )
    assert written == Preprocess((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), 0.5, 256, (224, 200), "nhwc", "bgr")
    assert Preprocess(mean=0.5).mean == (0.5,)
    assert Preprocess().is_empty and not written.is_empty


def test_one_value_for_each_channel() -> None:
    for options in ({"mean": (1, 2)}, {"std": (1, 2)}):
        with pytest.raises(UsageError, match="has 2 values, the model's input has 3 channels"):
            run(pixels(1), spec(3, 8, 8), **options)
    with pytest.raises(DataError, match="do not fit"):
        run(np.zeros((2, 5), np.float32), spec(5), mean=(1, 2))
    with pytest.raises(DataError, match="can't hold images"):
        Transform.bind(None, spec(192), [encoded(Image.fromarray(pixels(1)[0]))])


def test_round_trip_through_dictionaries_and_metadata() -> None:
    settings_ = Preprocess(mean=(0.1, 0.2, 0.3), crop=(4, 5), scale=1, layout="nhwc")
    assert Preprocess.from_dict(settings_.to_dict()) == settings_
    assert settings_.to_dict() == {"mean": [0.1, 0.2, 0.3], "crop": [4, 5], "scale": 1.0, "layout": "nhwc"}
    model = classifier()
    assert preprocess_of(model) is None
    record_preprocess(model, Preprocess())
    record_preprocess(model, settings_)
    assert preprocess_of(model) == settings_
    assert [entry.key for entry in model.metadata_props] == [METADATA_KEY]


@pytest.mark.parametrize("text", ["", "not json", "[1]", '{"mean": "x"}', '{"unknown": 1}', '{"std": 0}'])
def test_metadata_of_others_is_not_trusted(text: str) -> None:
    model = classifier()
    model.metadata_props.add(key=METADATA_KEY, value=text)
    assert preprocess_of(model) is None


def test_unknown_keys_get_the_nearest_one() -> None:
    with pytest.raises(UsageError) as caught:
        Preprocess.from_dict({"meen": 1})
    assert caught.value.hint == "did you mean 'mean'?"


def test_recorded_settings_serve_images_only() -> None:
    from onnxprune.evaluate.datasets import load_dataset

    recorded = Preprocess(scale=1, mean=3)
    images = load_dataset(pixels(2), spec(3, 8, 8), recorded=recorded)
    assert images.preprocess.mean == (3.0,) and images.warnings == ()
    floats = load_dataset(np.ones((2, 3, 8, 8), np.float32), spec(3, 8, 8), recorded=recorded)
    assert np.array_equal(floats.arrays().inputs, np.ones((2, 3, 8, 8)))
    given = load_dataset(pixels(2), spec(3, 8, 8), recorded=recorded, preprocess=Preprocess(std=2))
    assert given.preprocess.mean == (0.0,)


def test_shapes_as_users_read_them() -> None:
    assert describe_shape((None, 3, None, 8)) == "N x 3 x ? x 8"
    assert describe_shape((2,)) == "2"
    assert describe_shape(()) == "a scalar"


def test_numbers_may_come_in_arrays() -> None:
    given = Preprocess(mean=np.array([0.5, 0.25]), std=np.float32(2.0), crop=np.array([8, 6]))
    assert given == Preprocess(mean=(0.5, 0.25), std=(2.0,), crop=(8, 6))
