"""The configuration: from keywords, from TOML, flags winning, unknown keys named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.config import PREPROCESSING, CompressConfig, merged_options, read_toml
from onnxprune.errors import UsageError
from onnxprune.evaluate.preprocess import Preprocess
from onnxprune.select.budget import Budget
from onnxprune.values import MAX_SEED, parse_seconds, parse_shape


def test_options_become_fields() -> None:
    config = CompressConfig.from_options(
        {
            "model": "a.onnx",
            "macs": "50%",
            "latency": "4ms",
            "max-drop": 1.0,
            "data-term": "hsic",
            "keep": "*/head/*",
            "output": "b.onnx",
            "preprocess": {"mean": "0.5,0.5,0.5", "resize": 256},
            "seed": None,
        }
    )
    assert set(config.budgets) == {Budget("macs", relative=0.5), Budget("latency", absolute=4.0)}
    assert config.budget("latency") == Budget("latency", absolute=4.0)
    assert config.budget("size") is None
    assert (config.max_drop, config.data_term, config.keep) == (1.0, "hsic", ("*/head/*",))
    assert config.output == Path("b.onnx")
    assert config.preprocess == Preprocess(mean=(0.5, 0.5, 0.5), resize=256)
    assert config.seed == CompressConfig(model="a.onnx").seed


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"method": "stlp"}, "--method 'stlp' is unknown"),
        ({"data_term": "x"}, "--data-term"),
        ({"recover": "fine-tune"}, "--recover"),
        ({"provider": "gpu"}, "--provider"),
        ({"calibration": 0}, "--calibration 0"),
        ({"calibration": 1.5}, "--calibration 1.5"),
        ({"calibration": True}, "--calibration True"),
        ({"round_to": 0}, "--round-to 0"),
        ({"threads": 0}, "--threads 0"),
        ({"threads": 1025}, "--threads 1025 is more than 1,024"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": MAX_SEED + 1}, "is more than 9,223,372,036,854,775,807"),
        ({"seed": np.True_}, "is not a whole number"),
        ({"max_drop": 10**400}, "--max-drop inf"),
        (
            {"macs": Budget("params", relative=0.5)},
            "--macs takes no budget of another kind, such as params 50%",
        ),
        ({"plan": "p.json", "method": "stlp-ib"}, "--method is of no use with --plan"),
        ({"plan": "p.json", "data_term": "hsic"}, "--data-term is of no use with --plan"),
        ({"plan": "p.json", "depth_weight": 2}, "--depth-weight is of no use with --plan"),
        ({"mean": 0.5, "preprocess": {"mean": 0.4}}, "mean is given twice"),
        ({"mean": 0.5, "preprocess": Preprocess(mean=(0.4,))}, "mean is given twice"),
        ({"mean": 0.5, "preprocess": 3}, "the preprocessing is 3"),
        ({"layout": "nc"}, "--layout 'nc'"),
        ({"depth_weight": 0.0}, "--depth-weight 0.0"),
        ({"depth_weight": 2000}, "--depth-weight 2000"),
        ({"depth_weight": "x"}, "--depth-weight takes a number"),
        ({"depth_weight": "nan"}, "--depth-weight nan"),
        ({"max_group_ratio": 0.0}, "--max-group-ratio 0.0"),
        ({"max_group_ratio": 1.1}, "--max-group-ratio 1.1"),
        ({"max_group_ratio": "x"}, "--max-group-ratio 'x'"),
        ({"max_drop": -1.0}, "--max-drop -1.0"),
        ({"max_drop": "1.0"}, "--max-drop '1.0' is not a number"),
        ({"max_drop": float("nan")}, "--max-drop nan"),
        ({"keep": [3]}, "--keep takes globs"),
        ({"dry_run": "yes"}, "dry-run is true or false"),
        ({"plan": 3}, "--plan takes a path"),
        ({"macs": "50%", "budgets": (Budget("macs", relative=0.4),)}, "given twice"),
        ({"preprocess": {"maen": 1}}, "maen"),
        ({"mac": "50%"}, "unknown option 'mac'"),
        ({"calibrations": 3}, "unknown option 'calibrations'"),
    ],
)
def test_refuses_senseless_values_in_one_line(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        CompressConfig.from_options({"model": "a.onnx", **values})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_preprocessing_is_made_of_options_of_its_own() -> None:
    """As on the command line."""
    loose = {
        "scale": 1, "mean": 0.5, "std": "1,2,3", "resize": "8", "crop": (6, 7), "layout": "nhwc",
        "color": "bgr",
    }  # fmt: skip
    config = CompressConfig.from_options({"model": "a.onnx", **loose})
    assert config.preprocess == Preprocess(
        mean=(0.5,), std=(1, 2, 3), scale=1, resize=8, crop=(6, 7), layout="nhwc", color="bgr"
    )
    for base in ({"std": 2, "crop": None}, Preprocess(std=(2.0,))):
        config = CompressConfig.from_options({"model": "a.onnx", "preprocess": base, "mean": 0.5, "crop": 4})
        assert config.preprocess == Preprocess(mean=(0.5,), std=(2.0,), crop=4)


def test_numbers_may_be_numpys() -> None:
    whole = {"calibration": 7, "seed": 3, "round_to": 2, "threads": 1}
    real = {"max_drop": 0.5, "depth_weight": 2.0, "max_group_ratio": 0.5, "lr": 0.25, "epochs": 2.0}
    tuning = {"recover": "finetune", "time_limit": np.float32(8)}
    config = CompressConfig.from_options(
        {
            "model": "a.onnx", **tuning,
            **{name: np.int64(value) for name, value in whole.items()},
            **{name: np.float32(value) for name, value in real.items()},
        }
    )  # fmt: skip
    assert config == CompressConfig("a.onnx", **{**whole, **real, **tuning, "time_limit": 8.0})  # type: ignore[arg-type]  # all in one mapping
    assert all(type(getattr(config, name)) is int for name in whole)
    assert all(type(getattr(config, name)) is float for name in (*real, "time_limit"))


def test_a_budget_is_taken_as_it_is() -> None:
    budget = Budget("macs", absolute=3e6)
    assert CompressConfig.from_options({"model": "a.onnx", "macs": budget}).budgets == (budget,)


@pytest.mark.parametrize("name", ["output", "save_plan", "save-plan", "force"])
def test_functions_that_write_nothing_take_no_names_of_files(name: str) -> None:
    with pytest.raises(UsageError, match="nothing is written") as caught:
        CompressConfig.of("a.onnx", {"macs": 0.5, name: "x"})
    assert "result.save" in caught.value.hint
    CompressConfig.of("a.onnx", {"macs": 0.5, name: None})


def test_wrong_values_are_shown_in_short() -> None:
    with pytest.raises(UsageError) as caught:
        CompressConfig("a.onnx", plan=list(range(1000)))  # type: ignore[arg-type]  # the mistake that is tested
    assert len(str(caught.value)) < 100 and "save_plan" in caught.value.hint


@pytest.mark.parametrize("value", ["1x3X8x8", (1, 3, 8, 8), np.array([1, 3, 8, 8])])
def test_shapes_are_texts_or_sizes(value: object) -> None:
    assert parse_shape(value) == (1, 3, 8, 8)


@pytest.mark.parametrize("value", ["", "1x", "1x0", "1,3", (), (1.5, 2), 8, (1, -1), "ax1"])
def test_what_is_no_shape_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="no shape"):
        parse_shape(value)


def test_fields_may_be_written_as_loosely_as_options() -> None:
    options: dict[str, Any] = {
        "budgets": Budget("macs", relative=0.5),
        "keep": "foo*",
        "plan": "x.plan",
        "output": "out.onnx",
        "preprocess": {"mean": 0.5},
        "seed": None,
    }
    config = CompressConfig("a.onnx", **options)
    assert config == CompressConfig.from_options({"model": "a.onnx", **options})
    assert config.budgets == (Budget("macs", relative=0.5),)
    assert (config.keep, config.plan, config.output, config.seed) == (
        ("foo*",), Path("x.plan"), Path("out.onnx"), 0
    )  # fmt: skip
    assert config.preprocess == Preprocess(mean=(0.5,))


@pytest.mark.parametrize(
    "options",
    [
        {"budgets": "macs 50%"},
        {"budgets": ("macs 50%",)},
        {"budgets": 0.5},
        {"keep": 3},
        {"plan": 3},
        {"preprocess": 3},
        {"dry_run": "yes"},
    ],
)
def test_fields_are_refused_as_options_are(options: dict[str, Any]) -> None:
    for make in (lambda: CompressConfig("a.onnx", **options), lambda: CompressConfig.of("a.onnx", options)):
        with pytest.raises(UsageError) as caught:
            make()
        assert caught.value.hint


def test_no_model_is_an_error() -> None:
    with pytest.raises(UsageError, match="no model"):
        CompressConfig.from_options({"macs": "50%"})


@pytest.mark.parametrize(("written", "meant"), [("metod", "method"), ("max_drops", "max-drop")])
def test_unknown_keys_name_the_nearest(written: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        CompressConfig.from_options({"model": "a.onnx", written: 1})
    assert caught.value.hint == f"did you mean '{meant}'?"


def test_something_must_say_how_far_to_go() -> None:
    with pytest.raises(UsageError, match="no budget"):
        CompressConfig(model="a.onnx").check_goal()
    for options in ({"macs": 0.5}, {"max_drop": 1.0}, {"plan": "p.json"}):
        CompressConfig.from_options({"model": "a.onnx", **options}).check_goal()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_toml_is_read_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "onnxprune.toml",
        """
        model = "net.onnx"
        data = "photos"
        eval-data = "my.module:batches"
        macs = 0.5
        max_drop = 1
        keep = ["*/head/*"]

        [preprocess]
        mean = [0.485, 0.456, 0.406]
        """,
    )
    config = CompressConfig.from_toml(path)
    assert config.model == str(tmp_path / "net.onnx")
    assert config.data == str(tmp_path / "photos")
    assert config.eval_data == "my.module:batches"
    assert config.budgets == (Budget("macs", relative=0.5),)
    assert config.keep == ("*/head/*",)
    assert config.preprocess == Preprocess(mean=(0.485, 0.456, 0.406))


def test_toml_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", '\ufeffmodel = "/net.onnx"')
    assert CompressConfig.from_toml(path).model == "/net.onnx"


@pytest.mark.parametrize("name", ["file", "file/folder", "link"])
def test_a_checkpoint_needs_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UsageError, match="not a folder") as caught:
        CompressConfig("a.onnx", recover="finetune", checkpoint=tmp_path / name)
    assert caught.value.hint
    for fine in (".", "new/folder"):
        CompressConfig("a.onnx", recover="finetune", checkpoint=tmp_path / fine)


def test_synthetic_data_is_no_path(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", 'model = "/net.onnx"\ndata = "synthetic"')
    assert CompressConfig.from_toml(path).data == "synthetic"


@pytest.mark.parametrize("data", ["loader.py:batches", "sub/loader.py:batches"])
def test_a_function_in_a_file_is_looked_up_beside_the_configuration(tmp_path: Path, data: str) -> None:
    path = write(tmp_path / "c.toml", f'model = "net.onnx"\ndata = "{data}"')
    assert CompressConfig.from_toml(path).data == str(tmp_path / data)


@pytest.mark.parametrize("key", ["json", "report", "quiet", "debug", "plot", "against"])
def test_what_is_printed_is_not_for_the_file(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "c.toml", f'model = "net.onnx"\n{key} = "x"')
    with pytest.raises(UsageError) as caught:
        CompressConfig.from_toml(path)
    assert caught.value.hint == f"--{key} is an option of the command line alone"


def test_flags_win_option_by_option(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.toml",
        'model = "m.onnx"\nmacs = "50%"\nsize = "60%"\nseed = 3\n'
        "[preprocess]\nmean = [1, 2, 3]\nresize = 256",
    )
    config = CompressConfig.from_toml(
        path, {"macs": "40%", "seed": None, "preprocess": {"resize": "224", "crop": None}}
    )
    assert config.budget("macs") == Budget("macs", relative=0.4)
    assert config.budget("size") == Budget("size", relative=0.6)
    assert config.seed == 3
    assert config.preprocess == Preprocess(mean=(1, 2, 3), resize=224)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("macs = ", "not valid TOML"),
        ("mcas = 0.5", "unknown key in"),
        ("preprocess = 3", "is a table"),
        ("budgets = []", "unknown key in"),
        ("mean = 0.5", "unknown key in"),
    ],
)
def test_bad_toml_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path / "bad.toml", text)
    with pytest.raises(UsageError) as caught:
        read_toml(path)
    assert says in str(caught.value) and "bad.toml" in str(caught.value)


def test_a_missing_or_binary_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such configuration file"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="can't read"):
        read_toml(tmp_path / "binary.toml")


def test_merging_leaves_its_arguments_alone() -> None:
    base = {"macs": 0.5, "preprocess": {"mean": 1}}
    merged = merged_options(base, {"macs": None, "max-drop": 2.0, "preprocess": {"mean": None, "std": 2}})
    assert merged == {"macs": 0.5, "max_drop": 2.0, "preprocess": {"mean": 1, "std": 2}}
    assert base == {"macs": 0.5, "preprocess": {"mean": 1}}


def test_a_configuration_is_frozen_and_comparable() -> None:
    one = CompressConfig.from_options({"model": "a.onnx", "macs": 0.5})
    assert one == CompressConfig.from_options({"model": "a.onnx", "macs": "50%"})
    with pytest.raises(AttributeError):
        one.seed = 1  # that it is refused is the point
    assert all(item.name.islower() for item in fields(one))


def test_fine_tuning_options_are_read_as_written() -> None:
    config = CompressConfig.from_options(
        {"model": "m.onnx", "recover": "finetune", "epochs": 3, "time-limit": "10m", "lr": "0.002"}
    )
    assert (config.epochs, config.time_limit, config.lr) == (3, 600.0, 0.002)
    assert [parse_seconds(text) for text in ("90", "90s", "1.5 h")] == [90.0, 90.0, 5400.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"recover": "finetune", "time_limit": "soon"},
        {"recover": "finetune", "lr": "fast"},
        {"recover": "finetune", "lr": -1.0},
        {"recover": "finetune", "epochs": 0},
        {"time_limit": "10m"},
        {"lr": 0.1},
        {"recover": "none", "checkpoint": "here"},
    ],
)
def test_fine_tuning_options_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        CompressConfig.from_options({"model": "m.onnx", **wrong})


def test_the_preprocessing_options_are_the_fields_of_preprocess() -> None:
    assert set(PREPROCESSING) == {item.name for item in fields(Preprocess)}
