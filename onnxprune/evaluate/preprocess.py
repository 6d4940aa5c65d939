"""From images to a model's input: the options, what they default to, and doing it."""

from __future__ import annotations

import difflib
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, cast

from onnxprune.errors import UsageError
from onnxprune.profile.spec import TensorSpec

if TYPE_CHECKING:
    import onnx

Layout = Literal["nchw", "nhwc"]
Color = Literal["rgb", "bgr", "gray"]
Size = int | tuple[int, int]

_Number = TypeVar("_Number", float, int)

METADATA_KEY: Final = "onnxprune.preprocess"
LAYOUTS: Final = ("nchw", "nhwc")
COLORS: Final = ("rgb", "bgr", "gray")


@dataclass(frozen=True)
class Preprocess:
    """How samples become inputs: geometry, then ``(x * scale - mean) / std`` for each channel.

    Every field may be left out:

    * ``mean``, ``std``: one number, or one for each channel in the order of ``color``; 0 and 1.
    * ``scale``: 1/255 for images, and 1 where a mean or std above 1 shows that they are in units of
      0..255, or where the model's input holds integers. ``scale=1`` feeds raw 0..255. Always 1 for
      arrays that are not images.
    * ``resize``: an int resizes the shorter side (bilinear with antialiasing), ``(height, width)`` or
      ``"HxW"`` both sides.
    * ``crop``: centre crop, an int or ``(height, width)``; the model's input size where ``resize`` is
      given. With neither, larger image files are fitted to the model's input (shorter side, then crop).
    * ``layout``: of the model's input; read from its shape.
    * ``color``: channel order of the model's input, to which images are brought; ``gray`` where it has
      one channel, else ``rgb``.

    Raises UsageError for values that make no sense.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    resize: Size | None = None
    crop: Size | None = None
    layout: Layout | None = None
    color: Color | None = None

    def __post_init__(self) -> None:
        """Bring loosely written values into their types, and refuse those that make no sense."""
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if self.std is not None and any(value == 0.0 for value in self.std):
            raise UsageError("--std can't be 0", hint="each channel is divided by it")
        if self.scale is not None:
            scale = _numbers("scale", self.scale)
            if scale is None or len(scale) != 1 or scale[0] == 0.0:
                raise UsageError(
                    f"--scale {self.scale!r} is not one number other than 0",
                    hint="1 leaves values as they are",
                )
            object.__setattr__(self, "scale", scale[0])
        for name in ("resize", "crop"):
            object.__setattr__(self, name, _size(name, getattr(self, name)))
        for name, known in (("layout", LAYOUTS), ("color", COLORS)):
            value = getattr(self, name)
            if value is not None:
                if not isinstance(value, str) or value.lower() not in known:
                    raise UsageError(f"--{name} {value!r} is unknown", hint=f"choose {', '.join(known)}")
                object.__setattr__(self, name, value.lower())

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all is asked for."""
        return all(getattr(self, item.name) is None for item in fields(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From a report, a TOML table or command line options; UsageError for unknown keys."""
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
                raise UsageError(f"unknown preprocessing option '{name}'", hint=hint)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, as JSON values."""
        return {
            item.name: list(value) if isinstance(value, tuple) else value
            for item in fields(self)
            if (value := getattr(self, item.name)) is not None
        }

    def resolve(self, spec: TensorSpec, *, images: bool) -> Preprocess:
        """Every field but the geometry filled in, for the model's input ``spec``.

        ``images`` says whether the samples are images (uint8 or files) or arrays taken as they are.
        """
        layout = self.layout or guess_layout(spec)
        channels = channel_count(spec, layout)
        return replace(
            self,
            mean=self.mean or (0.0,),
            std=self.std or (1.0,),
            scale=self._scale(spec, images=images) if self.scale is None else self.scale,
            crop=self.crop if self.resize is None or self.crop is not None else input_size(spec, layout),
            layout=layout,
            color=self.color or ("gray" if channels == 1 else "rgb"),
        )

    def _scale(self, spec: TensorSpec, *, images: bool) -> float:
        raw_units = any(abs(value) > 1.0 for value in (*(self.mean or ()), *(self.std or ())))
        if not images or raw_units or spec.dtype.kind != "f":
            return 1.0
        return 1.0 / 255.0


def guess_layout(spec: TensorSpec) -> Layout:
    """``nhwc`` where only the last axis of a 4-axis input can be the channels, else ``nchw``."""
    if len(spec.shape) != 4:
        return "nchw"
    first, last = spec.shape[1], spec.shape[3]
    return "nhwc" if last in (1, 3, 4) and first not in (1, 3, 4) else "nchw"


def channel_count(spec: TensorSpec, layout: Layout) -> int | None:
    """Channels of a 4-axis input; None where it is free or there are no such axes."""
    if len(spec.shape) != 4:
        return None
    return spec.shape[1 if layout == "nchw" else 3]


def input_size(spec: TensorSpec, layout: Layout) -> tuple[int, int] | None:
    """Height and width of a 4-axis input; None where either is free or there are no such axes."""
    if len(spec.shape) != 4:
        return None
    height, width = spec.shape[2:] if layout == "nchw" else spec.shape[1:3]
    return None if height is None or width is None else (height, width)


def preprocess_of(model: onnx.ModelProto) -> Preprocess | None:
    """The preprocessing recorded in a model's metadata; None where there is none that can be read."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            try:
                values = json.loads(entry.value)
                return Preprocess.from_dict(values) if isinstance(values, dict) else None
            except (ValueError, TypeError, UsageError):
                return None
    return None


def record_preprocess(model: onnx.ModelProto, preprocess: Preprocess) -> None:
    """Write ``preprocess`` into the metadata of ``model``, in place of what may be there."""
    text = json.dumps(preprocess.to_dict(), sort_keys=True)
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = text
            return
    model.metadata_props.add(key=METADATA_KEY, value=text)


def _numbers(name: str, value: object) -> tuple[float, ...] | None:
    if value is None:
        return None
    numbers = _parts(value, float, ",")
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise UsageError(
            f"--{name} {value!r} is not a number or a list of numbers", hint="such as 0.5,0.5,0.5"
        )
    return numbers


def _size(name: str, value: object) -> Size | None:
    if value is None:
        return None
    sizes = _parts(value, _whole, ",xX")
    if len(sizes) not in (1, 2) or min(sizes) < 1 or max(sizes) > 1 << 16:
        raise UsageError(f"--{name} {value!r} is not a size in pixels", hint="such as 224 or 224x320 (HxW)")
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def _parts(value: object, number: Callable[[Any], _Number], separators: str) -> tuple[_Number, ...]:
    """The numbers in a text, in a sequence, or in one value alone; none where a part is no such number."""
    if isinstance(value, str):
        parts: Sequence[object] = value.translate(dict.fromkeys(map(ord, separators), " ")).split()
    else:
        listed = value.tolist() if hasattr(value, "tolist") else value  # arrays of any library
        parts = listed if isinstance(listed, Sequence) else [listed]
    try:
        return () if any(isinstance(part, bool) for part in parts) else tuple(map(number, parts))
    except (TypeError, ValueError):
        return ()


def _whole(part: object) -> int:
    return int(part) if isinstance(part, str) else operator.index(cast(int, part))
