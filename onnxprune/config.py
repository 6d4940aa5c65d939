"""What a run is asked to do: one frozen value, from options, from keywords, or from a TOML file."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from onnxprune.errors import UsageError
from onnxprune.select.budget import BUDGET_KINDS, Budget, parse_budget
from onnxprune.values import as_budgets, as_preprocess, check_folder, coerced, one_of

if TYPE_CHECKING:
    from onnxprune.evaluate.preprocess import Preprocess
    from onnxprune.io.load import ModelSource

Method = Literal[
    "stlp-ib", "sglp-ib", "lasso-ib", "obs", "l1", "l2", "bn-scale", "fpgm", "wanda", "taylor", "random"
]
DataTerm = Literal["contribution", "hsic"]
Recovery = Literal["none", "closed-form", "finetune"]
Provider = Literal["auto", "cpu", "cuda"]

METHODS: tuple[Method, ...] = get_args(Method)
DATA_TERMS: tuple[DataTerm, ...] = get_args(DataTerm)
RECOVERIES: tuple[Recovery, ...] = get_args(Recovery)
PROVIDERS: tuple[Provider, ...] = get_args(Provider)

SYNTHETIC = "synthetic"
"""The DATA that stands for none: inputs drawn from a random generator, with a warning."""

PREPROCESSING = ("scale", "mean", "std", "resize", "crop", "layout", "color")
"""The fields of `Preprocess`, which are options of their own on the command line and as keywords."""

MAX_GROUP_RATIO = 0.9
"""Largest share of a group's units that selection removes where nothing else is said."""

_CALLABLE_DATA = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_PATH_OPTIONS = ("model", "output", "data", "eval_data", "plan", "save_plan", "checkpoint")
_COMMAND_LINE_ONLY = ("json", "report", "plot", "quiet", "debug", "against", "config")
_WRITTEN_LATER = {
    "output": "result.save(path)",
    "force": "result.save(path, force=True)",
    "save_plan": "result.save_plan(path)",
}
"""What the functions of the package don't do, and what does it there."""

_SELECTION_ONLY = ("method", "data_term", "depth_weight")
"""Options of no use where a saved plan says what goes."""


@dataclass(frozen=True)
class CompressConfig:
    """All options of one compression; ``inspect``, ``analyze`` and ``evaluate`` read a part of them.

    ``model`` is a path, serialized bytes or a ModelProto. ``data`` and ``eval_data`` are what
    the command line takes as DATA (a path, ``module:function``, ``synthetic``) or, from Python,
    a data set object. ``budgets`` are upper bounds on the result, all to be met; ``max_drop`` is
    in points (percent) of the main metric. None stands for "not given", and paths and globs may be
    texts. Raises UsageError for values that make no sense.
    """

    model: ModelSource
    data: object = SYNTHETIC
    output: Path | None = None
    budgets: tuple[Budget, ...] = ()
    max_drop: float | None = None

    method: Method = "stlp-ib"
    data_term: DataTerm = "contribution"
    depth_weight: float | Literal["auto"] = "auto"
    """How much dearer an error is at the last layer than at the first, which later fits mend in part;
    ``auto`` selects and recovers with 1 and with 3 on small networks, and takes 1 on others."""
    recover: Recovery = "closed-form"

    epochs: float | None = None
    """Passes over the data in fine-tuning; None: 10, or as many as ``time_limit`` allows."""
    time_limit: float | None = None
    """Seconds of fine-tuning; ``10m``, ``90s`` and ``1h`` are understood."""
    lr: float | Literal["auto"] = "auto"
    """Peak learning rate of fine-tuning; ``auto`` finds one in a short test."""
    checkpoint: Path | None = None
    """Folder in which fine-tuning saves itself, and from which it goes on when it was interrupted."""

    calibration: int = 512
    """Number of calibration samples, drawn class-balanced."""
    eval_data: object | None = None
    split: str | None = None
    """Part of ``data``: a name (``train``), a range of rows (``:300``), or both (``train[:1000]``)."""
    eval_split: str | None = None
    """Part of ``eval_data``, or of ``data`` where there is no ``eval_data``. Where neither is given,
    what calibration leaves of ``data`` is for evaluation."""
    preprocess: Preprocess | None = None
    """How samples become inputs; None: as the model's metadata says, else by the kind of the data."""

    keep: tuple[str, ...] = ()
    """Globs over node names that are left alone."""
    only: tuple[str, ...] = ()
    """Globs over node names; where given, nothing else is pruned."""
    round_to: int = 1
    max_group_ratio: float | None = None
    """Largest share of a group's units that may go; None: `MAX_GROUP_RATIO`, for saved plans no bound."""

    seed: int = 0
    provider: Provider = "auto"
    threads: int | None = None
    """Threads of the runtime and of the algebra; None: as many as there are cores."""
    dry_run: bool = False
    plan: Path | None = None
    """A saved plan to apply instead of selecting."""
    save_plan: Path | None = None
    verify: bool = False
    """Check the masked-equivalence oracle before recovery."""
    force: bool = False
    """Allow an existing output to be replaced."""

    def __post_init__(self) -> None:
        """Bring loosely written values into their types, and refuse those that make no sense."""
        if not (isinstance(self.model, str | PathLike | bytes) or hasattr(self.model, "SerializeToString")):
            raise UsageError(
                f"the model is {str(self.model)[:40]!r}, not a path", hint="name an ONNX file, as a text"
            )
        for item in fields(self):
            value = getattr(self, item.name)
            given = item.default if value is None else coerced(item.name, value)
            object.__setattr__(self, item.name, given)
        one_of("method", self.method, METHODS)
        one_of("data-term", self.data_term, DATA_TERMS)
        one_of("recover", self.recover, RECOVERIES)
        one_of("provider", self.provider, PROVIDERS)
        if self.plan is not None:
            defaults = {item.name: item.default for item in fields(self)}
            _refuse_beside_plan([name for name in _SELECTION_ONLY if getattr(self, name) != defaults[name]])
        self._check_tuning()
        weight = self.depth_weight
        if weight != "auto" and not (_is_number(weight) and 1e-3 <= weight <= 1e3):
            raise UsageError(
                f"--depth-weight {weight!r} is not between 0.001 and 1000",
                hint="2 makes an error at the last layer twice as dear as at the first; auto tries 1 and 3",
            )
        ratio = self.max_group_ratio
        if ratio is not None and not (_is_number(ratio) and 0.0 < ratio <= 1.0):
            raise UsageError(
                f"--max-group-ratio {ratio!r} is not between 0 and 1",
                hint="0.9 lets every group lose at most nine tenths of its channels",
            )
        if self.max_drop is not None and not (
            _is_number(self.max_drop) and math.isfinite(self.max_drop) and self.max_drop >= 0.0
        ):
            raise UsageError(
                f"--max-drop {self.max_drop!r} is not a number of points",
                hint="1.0 allows top-1 to fall by at most one percentage point",
            )
        kinds = [budget.kind for budget in self.budgets]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise UsageError(f"the {kind} budget is given twice", hint="keep the tighter one")

    def _check_tuning(self) -> None:
        for name, value in (("epochs", self.epochs), ("time-limit", self.time_limit)):
            if value is not None and not (_is_number(value) and math.isfinite(value) and value > 0.0):
                raise UsageError(f"--{name} {value!r} is not a number above 0", hint=f"leave out --{name}")
        if self.lr != "auto" and not (_is_number(self.lr) and 0.0 < self.lr < 10.0):
            raise UsageError(f"--lr {self.lr!r} is no learning rate", hint="0.001 is one; auto finds one")
        given = [name for name in ("epochs", "time_limit", "checkpoint") if getattr(self, name) is not None]
        given += ["lr"] if self.lr != "auto" else []
        if given and self.recover != "finetune":
            raise UsageError(
                f"--{given[0].replace('_', '-')} is of no use with --recover {self.recover}",
                hint="add --recover finetune",
            )
        if self.checkpoint is not None:
            check_folder("checkpoint", self.checkpoint)

    def check_goal(self) -> None:
        """Raise UsageError where nothing says how far to compress."""
        if not self.budgets and self.max_drop is None and self.plan is None:
            raise UsageError(
                "no budget is given",
                hint="say how small with --macs 50%, --params, --size or --latency, or give --max-drop 1.0",
            )

    @property
    def target(self) -> Path | None:
        """Where the result goes: ``output``, or MODEL.pruned.onnx beside the input, if that is a file."""
        if self.output is not None:
            return self.output
        if not isinstance(self.model, str | PathLike):
            return None
        source = Path(self.model)
        return source.parent / f"{source.stem or 'model'}.pruned.onnx"

    def budget(self, kind: str) -> Budget | None:
        """The budget of that kind, if there is one."""
        return next((budget for budget in self.budgets if budget.kind == kind), None)

    @classmethod
    def of(cls, config: Self | ModelSource, options: Mapping[str, Any]) -> Self:
        """``config`` itself, or that of a model and ``options``, keywords of the package's functions.

        Raises UsageError for options beside the first, and for those that say where to write, since these
        functions write nothing.
        """
        if not isinstance(config, cls):
            if "model" in options:
                raise UsageError("the model is given twice", hint="leave out model=")
            _refuse_written(options)
            return cls.from_options({**options, "model": config})
        if options:
            raise UsageError("give a configuration or options, not both", hint="use dataclasses.replace")
        return config

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """A configuration from plain option values, as keywords or a TOML file give them.

        Keys are field names or the names of the command line's options; ``macs``, ``params``,
        ``size`` and ``latency`` become ``budgets``; ``preprocess`` may be a mapping, and what it
        holds an option of its own. None means "not given". Raises UsageError for unknown keys, with the
        nearest known one, and for those that others make useless.
        """
        given = {_key(name): value for name, value in options.items() if value is not None}
        _refuse_unknown(given, _option_names() | set(PREPROCESSING), "option")
        if "model" not in given:
            raise UsageError("no model is given", hint="name the ONNX file to compress")
        if "plan" in given:
            _refuse_beside_plan(given)
        given = _with_preprocessing(given)
        single = [parse_budget(kind, given.pop(kind)) for kind in BUDGET_KINDS if kind in given]
        return cls(budgets=(*as_budgets(given.pop("budgets", ())), *single), **given)

    @classmethod
    def from_toml(cls, path: str | PathLike[str], flags: Mapping[str, Any] | None = None) -> Self:
        """A configuration from a TOML file; ``flags`` win over what it says, option by option."""
        return cls.from_options(merged_options(read_toml(path), flags or {}))


def read_toml(path: str | PathLike[str]) -> dict[str, Any]:
    """The options that a TOML file states, its keys checked and its paths made absolute.

    Keys are the names of the command line's options, with ``-`` or ``_``; ``[preprocess]`` is a
    table. Paths are relative to the file's own folder. Raises UsageError with the place.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"no such configuration file: {path}", hint="give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"can't read the configuration file {path}: {error}", hint="it must be a text file in UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{path} is not valid TOML: {error}", hint='texts stand in quotes, such as macs = "50%"'
        ) from error
    options = {_key(name): value for name, value in table.items()}
    _refuse_unknown(options, _option_names() - {"budgets"}, f"key in {path}:")
    if "preprocess" in options and not isinstance(options["preprocess"], Mapping):
        raise UsageError(f"{path}: preprocess is a table", hint="write [preprocess] and its keys below")
    for name in _PATH_OPTIONS:
        if isinstance(options.get(name), str):
            options[name] = _relative_to(path.parent, options[name])
    return options


def merged_options(base: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with what ``flags`` states in its place; ``preprocess`` is merged key by key."""
    merged = {_key(name): value for name, value in base.items()}
    for name, value in flags.items():
        key = _key(name)
        if value is None:
            continue
        if key == "preprocess" and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = {**merged[key], **{k: v for k, v in value.items() if v is not None}}
        else:
            merged[key] = value
    return merged


def _option_names() -> set[str]:
    return {item.name for item in fields(CompressConfig)} | set(BUDGET_KINDS)


def _key(name: str) -> str:
    return name.replace("-", "_")


def _refuse_unknown(given: Mapping[str, Any], known: set[str], what: str) -> None:
    for name in given:
        if name in known:
            continue
        if name in _COMMAND_LINE_ONLY:
            raise UsageError(
                f"unknown {what} {name!r}", hint=f"--{name} is an option of the command line alone"
            )
        if name in PREPROCESSING:
            raise UsageError(f"unknown {what} {name!r}", hint="write it below [preprocess]")
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        listed = ", ".join(sorted(known))
        hint = f"did you mean {near[0].replace('_', '-')!r}?" if near else f"known: {listed}"
        raise UsageError(f"unknown {what} {name.replace('_', '-')!r}", hint=hint)


def _refuse_beside_plan(names: Iterable[str]) -> None:
    """Raise UsageError where one of ``names`` is an option that a saved plan makes useless."""
    for name in _SELECTION_ONLY:
        if name in names:
            raise UsageError(
                f"--{name.replace('_', '-')} is of no use with --plan, which says what goes",
                hint="leave out one of the two",
            )


def _refuse_written(options: Mapping[str, Any]) -> None:
    """Raise UsageError where options say where to write, to a function that writes nothing."""
    for name, value in options.items():
        instead = _WRITTEN_LATER.get(_key(name))
        if instead is not None and value is not None:
            raise UsageError(f"nothing is written here, so {name}= is of no use", hint=f"use {instead}")


def _with_preprocessing(given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with the options of the preprocessing in ``preprocess``; UsageError for one given twice."""
    loose = {name: given[name] for name in PREPROCESSING if name in given}
    rest = {name: value for name, value in given.items() if name not in loose}
    if not loose:
        return rest
    base = as_preprocess(rest.get("preprocess", {}))
    table = {} if base is None else base.to_dict()
    for name in loose:
        if name in table:
            raise UsageError(f"{name} is given twice", hint=f"leave out {name}=, or what preprocess= says")
    return {**rest, "preprocess": {**table, **loose}}


def _relative_to(folder: Path, text: str) -> str:
    """``text`` as a path inside ``folder``, unless it is no path at all."""
    if text == SYNTHETIC or (_CALLABLE_DATA.fullmatch(text) and ".py:" not in text):
        return text
    return str(folder / text)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
