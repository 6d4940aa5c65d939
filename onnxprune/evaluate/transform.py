"""Preprocessing bound to one model input: raw samples in, arrays that the model takes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnxprune.errors import DataError, UsageError
from onnxprune.evaluate.images import EncodedImage, in_threads
from onnxprune.evaluate.preprocess import Preprocess, Size, channel_count, input_size
from onnxprune.profile.spec import TensorSpec, describe_shape

Array = npt.NDArray[Any]
Samples = Array | list[EncodedImage]
"""Raw samples: an array (n, ...), or n images of any size and mode."""

_RESIZE_HINT = "--resize and --crop bring images to the model's input size; check --layout and --color too"


def are_images(samples: Samples, spec: TensorSpec) -> bool:
    """Whether raw samples are images: decoded files, or uint8 (n, H, W[, C]) for a 4-axis input."""
    if isinstance(samples, list):
        return True
    return samples.dtype == np.uint8 and samples.ndim in (3, 4) and len(spec.shape) == 4


@dataclass(frozen=True)
class Transform:
    """Brings raw samples into the shape, layout and element type of one model input.

    ``settings`` has every field filled in (see `Preprocess.resolve`); ``asked`` says whether the user
    gave any, without which arrays that are not images are only cast; ``range_assumed`` whether images
    go in by the default scale, no mean, std or scale being given. ``threads`` decode and resize images;
    None: one a core, 8 at most.
    """

    spec: TensorSpec
    settings: Preprocess
    images: bool
    asked: bool
    range_assumed: bool
    threads: int | None = None

    @classmethod
    def bind(
        cls, preprocess: Preprocess | None, spec: TensorSpec, samples: Samples, threads: int | None = None
    ) -> Transform:
        """The transform for data whose first samples are ``samples``.

        Raises DataError where they can't fit the model, UsageError where ``preprocess`` can't.
        """
        images = are_images(samples, spec)
        given = preprocess or Preprocess()
        settings = given.resolve(spec, images=images)
        if images and len(spec.shape) != 4:
            raise DataError(
                f"the model's input '{spec.name}' is {spec.describe()}, which can't hold images",
                hint="give arrays in the model's own shape, as .npz or .npy",
            )
        channels = channel_count(spec, settings.layout or "nchw")
        for name, values in (("mean", settings.mean or ()), ("std", settings.std or ())):
            if channels is not None and len(values) not in (1, channels):
                raise UsageError(
                    f"--{name} has {len(values)} values, the model's input has {channels} channels",
                    hint="give one value, or one for each channel",
                )
        assumed = images and given.mean is None and given.std is None and given.scale is None
        return cls(spec, settings, images, not given.is_empty, assumed, threads)

    def __call__(self, samples: Samples) -> Array:
        """Model-ready inputs (n, ...) from raw samples; DataError where they do not fit."""
        prepared = self.geometry(samples)
        inputs = self._image_inputs(prepared) if self.images else self._array_inputs(prepared)
        if not self.spec.accepts(inputs.shape):
            raise DataError(
                f"the model's input '{self.spec.name}' wants {self.spec.describe()}, "
                f"the data gives {describe_shape(inputs.shape)}",
                hint=_RESIZE_HINT if self.images else "arrays are taken as they are, in the model's layout",
            )
        if not self.images and inputs.dtype.kind == "f":
            bad = int((~np.isfinite(inputs).reshape(len(inputs), -1).all(1)).sum())
            if bad:
                raise DataError(
                    f"{bad} of {len(inputs)} samples read hold values that are not finite",
                    hint="leave them out, or replace NaN and infinity in them",
                )
        return inputs

    def geometry(self, samples: Samples) -> Array:
        """Images as uint8 (n, H, W, C) of the final size and colours; other arrays untouched.

        Applying it to its own result changes nothing, so results can be kept and reused.
        """
        if isinstance(samples, np.ndarray):
            return self._array_geometry(samples) if self.images else samples
        arrays = in_threads(
            lambda image: self._image_geometry(image.decode(), fit=True), samples, self.threads
        )
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            listed = " and ".join(describe_shape(shape) for shape in sorted(shapes)[:2])
            raise DataError(f"the images differ in size ({listed})", hint=_RESIZE_HINT)
        return np.stack(arrays)

    def _array_geometry(self, samples: Array) -> Array:
        array = samples[..., None] if samples.ndim == 3 else samples
        if array.shape[3] not in (1, 3, 4) and array.shape[1] in (1, 3, 4):
            array = array.transpose(0, 2, 3, 1)
        if array.shape[3] not in (1, 3, 4):
            raise DataError(
                f"uint8 arrays are images (N, H, W, C), not {describe_shape(samples.shape)}",
                hint="give float arrays to feed the model as they are",
            )
        resized = self.settings.resize is not None or self.settings.crop is not None
        if not resized and array.shape[3] == self._file_channels():
            return array
        images = [Image.fromarray(item[..., 0] if item.shape[2] == 1 else item) for item in array]
        return np.stack([self._image_geometry(image, fit=False) for image in images])

    def _file_channels(self) -> int:
        return 1 if self.settings.color == "gray" else 3

    def _image_geometry(self, image: Image.Image, *, fit: bool) -> Array:
        image = _eight_bit(image).convert("L" if self.settings.color == "gray" else "RGB")
        resize, crop = self.settings.resize, self.settings.crop
        target = input_size(self.spec, self.settings.layout or "nchw")
        if fit and resize is None and crop is None and target is not None:
            # Larger photos are fitted; enlarging smaller ones is nearly always a mix-up of data sets.
            if image.height < target[0] or image.width < target[1]:
                raise DataError(
                    f"an image of {image.height} x {image.width} pixels is smaller than the model's input "
                    f"({target[0]} x {target[1]})",
                    hint=f"--resize {min(target)} enlarges images, if that is what the model expects",
                )
            image, crop = _resized(image, target, cover=True), target
        elif resize is not None:
            image = _resized(image, resize, cover=False)
        if crop is not None:
            image = _cropped(image, crop)
        array = np.asarray(image)
        return array[..., None] if array.ndim == 2 else array

    def _image_inputs(self, images: Array) -> Array:
        """(n, H, W, C) uint8 -> the model's layout, through one table of 256 values a channel."""
        channels = images.shape[3]
        values = np.arange(256, dtype=np.float64)[:, None]
        table = _affine(values, self.settings, channels)
        if self.spec.dtype.kind != "f":
            limits = np.iinfo(self.spec.dtype.name)
            table = np.clip(np.rint(table), limits.min, limits.max)
        typed = np.ascontiguousarray(table.T.astype(self.spec.dtype))
        if self.settings.color == "bgr":
            images = images[..., ::-1]
        n, height, width, _ = images.shape
        if self.settings.layout == "nhwc":
            inputs = np.empty((n, height, width, channels), dtype=self.spec.dtype)
            for channel in range(channels):
                inputs[..., channel] = typed[channel][images[..., channel]]
        else:
            inputs = np.empty((n, channels, height, width), dtype=self.spec.dtype)
            for channel in range(channels):
                inputs[:, channel] = typed[channel][images[..., channel]]
        return inputs

    def _array_inputs(self, arrays: Array) -> Array:
        if not self.asked:
            return np.ascontiguousarray(arrays.astype(self.spec.dtype, copy=False))
        layout = self.settings.layout
        if arrays.ndim == 4:
            # Channels are found by their number: arrays may come in the other layout.
            channels_first = layout == "nchw"
            here, there = (1, 3) if channels_first else (3, 1)
            wanted = channel_count(self.spec, layout or "nchw")
            if wanted is not None and arrays.shape[here] != wanted == arrays.shape[there]:
                arrays = arrays.transpose((0, 3, 1, 2) if channels_first else (0, 2, 3, 1))
            arrays = self._cropped_arrays(arrays)
        elif self.settings.crop is not None or self.settings.resize is not None:
            raise DataError(
                f"arrays of shape {describe_shape(arrays.shape)} can't be resized or cropped",
                hint="leave --resize and --crop out",
            )
        axis = 1 if layout == "nchw" or arrays.ndim < 4 else arrays.ndim - 1
        channels = arrays.shape[axis] if arrays.ndim > 1 else 1
        for values in (self.settings.mean or (), self.settings.std or ()):
            if len(values) not in (1, channels):
                raise DataError(
                    f"{len(values)} values of mean or std do not fit {describe_shape(arrays.shape)}",
                    hint="give one value, or one for each channel",
                )
        moved = np.moveaxis(arrays.astype(np.float64), axis, -1) if arrays.ndim > 1 else arrays
        inputs = _affine(moved, self.settings, channels)
        if arrays.ndim > 1:
            inputs = np.moveaxis(inputs, -1, axis)
        return np.ascontiguousarray(inputs.astype(self.spec.dtype))

    def _cropped_arrays(self, arrays: Array) -> Array:
        if self.settings.resize is not None:
            raise DataError(
                "arrays that are not uint8 images can't be resized",
                hint="resize them before, or give uint8 images",
            )
        if self.settings.crop is None:
            return arrays
        height_axis = 2 if self.settings.layout == "nchw" else 1
        for axis, size in zip((height_axis, height_axis + 1), _pair(self.settings.crop), strict=True):
            surplus = arrays.shape[axis] - size
            if surplus < 0:
                raise DataError(
                    f"arrays of {describe_shape(arrays.shape)} are smaller than the crop", hint="lower --crop"
                )
            arrays = arrays.take(range(surplus // 2, surplus // 2 + size), axis=axis)
        return arrays


def _affine(values: Array, settings: Preprocess, channels: int) -> Array:
    """``(x * scale - mean) / std`` with the channels on the last axis."""
    mean = np.broadcast_to(np.asarray(settings.mean or (0.0,), dtype=np.float64), (channels,))
    std = np.broadcast_to(np.asarray(settings.std or (1.0,), dtype=np.float64), (channels,))
    scale = 1.0 if settings.scale is None else settings.scale
    return np.asarray((values * scale - mean) / std)


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _resized(image: Image.Image, size: Size, *, cover: bool) -> Image.Image:
    """Shorter side to an int, or both sides exactly; with ``cover``, just large enough for both."""
    if isinstance(size, int) or cover:
        height, width = _pair(size)
        # Integers, cut and not rounded, as torchvision's Resize does.
        if height * image.width >= width * image.height:
            target = (height, max(width, image.width * height // image.height))
        else:
            target = (max(height, image.height * width // image.width), width)
    else:
        target = size
    if target == (image.height, image.width):
        return image
    return image.resize((target[1], target[0]), Image.Resampling.BILINEAR)


def _cropped(image: Image.Image, size: Size) -> Image.Image:
    height, width = _pair(size)
    if image.height < height or image.width < width:
        raise DataError(
            f"an image of {image.height} x {image.width} is smaller than the crop ({height} x {width})",
            hint="give --resize at least as large as --crop",
        )
    top = round((image.height - height) / 2)
    left = round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit gray images brought to 8 bits, which Pillow's own conversion would clip."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    return image
