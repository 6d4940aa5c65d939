"""Options that several commands share, and help pages with sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

import click

from onnxprune.config import PREPROCESSING as PREPROCESS_NAMES
from onnxprune.config import PROVIDERS, CompressConfig, merged_options, read_toml
from onnxprune.errors import UsageError

from .output import printing

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

DATA_HELP = (
    "A folder of class folders, a folder with labels.csv, an .npz or .parquet file, "
    "module:function, or synthetic."
)
SPLIT_HELP = "Use this part of DATA: a name (train), a range of rows (:300), or both (train[:1000])."


class SectionedOption(click.Option):
    """An option that is listed under a heading of its command's help page."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose help page lists its options by section, in the order of their definition."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the arguments, and print the help where they ask for it."""
        with printing():
            return super().make_context(*args, **kwargs)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list for each section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Help"), []).append(record)
        sections["Help"] = sections.pop("Help")
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


def command(name: str) -> Callable[[Callable[..., Any]], SectionedCommand]:
    """Decorator: a command with sectioned help and ``-h``."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    return click.command(name, cls=SectionedCommand, context_settings=settings)


def option(section: str, *names: str, **attributes: Any) -> Decorator:
    """Decorator: an option under ``section``; as click.option otherwise."""
    return click.option(*names, cls=SectionedOption, section=section, **attributes)


def default_of(name: str) -> str:
    """The default of a CompressConfig field, as help text."""
    value = next(item.default for item in fields(CompressConfig) if item.name == name)
    return f"[default: {value}]"


def grouped(*decorators: Decorator) -> Callable[[Decorated], Decorated]:
    """One decorator out of several; the first one comes first in the help."""

    def decorate(function: Decorated) -> Decorated:
        wrapped: Any = function
        for decorator in reversed(decorators):
            wrapped = decorator(wrapped)
        return cast(Decorated, wrapped)  # click's decorators give back the function that they annotate

    return decorate


def _enable_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if value:
        ctx.ensure_object(dict)["debug"] = True


PREPROCESSING = grouped(
    option(
        "Preprocessing",
        "--scale",
        type=float,
        metavar="X",
        help="Multiply pixel values by this first. [default: 1/255, or 1 where mean or std are above 1]",
    ),
    option("Preprocessing", "--mean", metavar="R,G,B", help="Then subtract this from each channel."),
    option("Preprocessing", "--std", metavar="R,G,B", help="Then divide each channel by this."),
    option("Preprocessing", "--resize", metavar="N|HxW", help="Resize the shorter side to N, or both sides."),
    option("Preprocessing", "--crop", metavar="N|HxW", help="Crop the centre, after resizing."),
    option("Preprocessing", "--layout", metavar="NAME", help="Order of the model's axes: nchw or nhwc."),
    option("Preprocessing", "--color", metavar="NAME", help="Channels the model expects: rgb, bgr or gray."),
)

RUNTIME = grouped(
    option(
        "Runtime",
        "--provider",
        type=click.Choice(PROVIDERS),
        metavar="NAME",
        help=f"Where models run: {', '.join(PROVIDERS)}. {default_of('provider')}",
    ),
    option("Runtime", "--threads", type=int, metavar="N", help="Threads to use; by default all cores."),
)

REPORTING = grouped(
    option("Output", "--json", "json_path", metavar="FILE|-", help="Write the report as JSON; - is stdout."),
    option("Output", "--quiet", is_flag=True, help="Print errors only."),
    option(
        "Output",
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_enable_debug,
        help="Print a traceback for errors.",
    ),
)

CONFIG = option(
    "Configuration",
    "--config",
    "config_path",
    metavar="FILE",
    help="Read options from a TOML file; flags win over it.",
)


def collect_config(
    config_path: str | None,
    flags: Mapping[str, Any],
    *,
    instead_of_data: str | None = None,
    data_hint: str = "name some with --data; --data synthetic does without, less accurately",
) -> CompressConfig:
    """The configuration that a command's flags and its ``--config`` file make up.

    Flags that were not given are None, False or empty, and leave the file's values alone. Raises UsageError
    where there is no model, and where there are no data, nor an option ``instead_of_data``.
    """
    given = {
        name: value
        for name, value in flags.items()
        if not (value is None or value is False or value == ())  # 0 is a value
    }
    preprocess = {name: given.pop(name) for name in PREPROCESS_NAMES if name in given}
    if preprocess:
        given["preprocess"] = preprocess
    options = merged_options(read_toml(config_path) if config_path is not None else {}, given)
    if "model" not in options:
        raise UsageError("no model is given", hint="name the ONNX file after the command")
    if "data" not in options and instead_of_data not in options:
        raise UsageError("no data is given", hint=data_hint)
    return CompressConfig.from_options(options)
