"""What users get wrong in data and options, from the outside: typed errors and warnings, never a bug."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

import onnxprune
from onnxprune.config import CompressConfig
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune_cli.main import run
from tests.model_builder import Builder

SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "quickstart"
MODEL, DATA = SAMPLE / "digits.onnx", SAMPLE / "digits.npz"
OPTIONS: dict[str, Any] = {
    "calibration": 40, "method": "l1", "recover": "none", "threads": 1, "macs": "60%"
}  # fmt: skip
LONG = "x" * 300  # no file system takes such a name


def arrays(count: int = 60) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The sample's images as the model takes them, and their labels."""
    with np.load(DATA) as stored:
        images, labels = stored["images"][:count], stored["labels"][:count]
    return images.astype(np.float32).transpose(0, 3, 1, 2) / 255.0, labels


def compress(data: object, **options: Any) -> onnxprune.CompressionResult:
    return onnxprune.compress(MODEL, data=data, **{**OPTIONS, **options})


def test_one_sample_is_enough() -> None:
    """Its rows' effective number was once a division by zero."""
    images, labels = arrays(1)
    assert compress((images, labels), method="stlp-ib").report.after.macs


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_are_not_finite_are_refused(value: float) -> None:
    images, labels = arrays()
    images[7, 0, 3, 3] = value
    for method in ("l1", "stlp-ib"):
        with pytest.raises(DataError, match=r"1 of .* not finite"):
            compress((images, labels), method=method, calibration=60)


@pytest.mark.parametrize("method", ("stlp-ib", "obs", "wanda"))
def test_a_sample_whose_squares_overflow_is_an_error_of_the_data(method: str) -> None:
    images, labels = arrays()
    images[7] *= np.float32(1e20)
    with pytest.raises(DataError, match="go beyond single precision"):
        compress((images, labels), method=method, calibration=60)


def test_a_gpu_that_onnxruntime_cannot_use_is_not_passed_over_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnxprune.calibration.cuda_devices", lambda: 1)
    images, labels = arrays()
    for provider, said in (("auto", True), ("cpu", False)):
        report = compress((images, labels), provider=provider, dry_run=True).report
        assert any("can't use the GPU" in text for text in report.warnings) is said
        assert report.method["provider"] == "cpu"


def test_labels_beyond_the_models_classes_are_found_before_any_work() -> None:
    images, labels = arrays()
    for data, judging in ((labels + 3, labels), (labels, labels + 3)):
        with pytest.raises(DataError, match="class"):
            compress((images, data), eval_data=(images, judging), dry_run=True)


def test_evaluation_data_without_labels_is_said_to_be_so() -> None:
    images, labels = arrays()
    report = compress((images, labels), eval_data=images).report
    assert any("evaluation data has no labels" in warning for warning in report.warnings)
    report = compress((images, labels), eval_data=(images, labels)).report
    assert not any("labels" in warning for warning in report.warnings)


def test_each_kind_of_data_is_prepared_by_itself(tmp_path: Path) -> None:
    """What images were given by default is not asked for arrays, and what the model records serves images."""
    with np.load(DATA) as stored:
        images = stored["images"][:60]
    floats, labels = arrays()
    plain = compress((images, labels), eval_data=(images, labels)).report
    assert plain.before.metrics["top1"] > 90.0
    for data, judging in (((images, labels), (floats, labels)), ("synthetic", (floats, labels))):
        report = compress(data, eval_data=judging).report
        assert report.before.metrics == plain.before.metrics
    recorded = onnxprune.compress(
        MODEL, data=(images, labels), preprocess={"mean": 0.1, "std": 0.9}, **OPTIONS
    ).model
    report = onnxprune.compress(
        recorded, data=(floats, labels), eval_data=(images, labels), **{**OPTIONS, "macs": "90%"}
    ).report
    assert report.data["evaluation"]["preprocess"]["mean"] == [0.1]
    assert report.data["calibration"]["preprocess"] is None


def test_a_wrong_evaluation_split_is_called_by_its_name() -> None:
    with pytest.raises(UsageError, match="--eval-split 'a:b'"):
        compress(str(DATA), eval_split="a:b")
    with pytest.raises(DataError, match="--eval-split 5000:"):
        compress(str(DATA), eval_split="5000:")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "l1", "data_term": "hsic"},
        {"data": str(DATA), "preprocess": {"mean": "0.5,0.5"}},
        {"keep": 5},
        {"split": 5},
        {"eval_split": 7},
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        compress(**{"data": str(DATA), **options})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("glob", "hint"),
    [("/stem/stem.0/Con", "did you mean '/stem/stem.0/Conv'?"), ("z", "matches whole names")],
)
def test_a_glob_that_matches_nothing_gets_the_nearest_name(glob: str, hint: str) -> None:
    with pytest.raises(UsageError, match="no node is named like") as caught:
        compress(str(DATA), keep=glob)
    assert hint in caught.value.hint


@pytest.mark.parametrize("model", [5, ["a.onnx"]])
def test_a_model_is_a_path_or_a_model(model: object) -> None:
    with pytest.raises(UsageError, match="not a path"):
        onnxprune.compress(model, data=str(DATA), macs=0.5)  # type: ignore[arg-type]  # the mistake that is tested


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["inspect", LONG], 2),
        (["compress", ".", "--data", str(DATA), "--macs", "50%"], 2),
        (["evaluate", str(MODEL), "--data", LONG], 5),
        (["compress", str(MODEL), "--data", str(DATA), "--macs", "50%", "-o", LONG], 2),
        (["compress", str(MODEL), "--data", str(DATA), "--macs", "50%", "--config", LONG], 2),
    ],
)
def test_paths_that_the_system_refuses_are_no_bugs(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int
) -> None:
    assert run(arguments) == status
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint: ")


def test_the_stages_take_models_as_paths_bytes_and_protos() -> None:
    options: dict[str, Any] = {"data": str(DATA), "split": ":50", "threads": 1}
    for model in (MODEL, str(MODEL), MODEL.read_bytes(), onnx.load(MODEL)):
        assert onnxprune.analyze_graph(model).groups
        assert onnxprune.evaluate(model, **options).metrics["top1"] > 90
        benched = onnxprune.benchmark(model, runs=1, threads=1).models
        assert len(benched) == 1 and benched[0].memory_bytes != 0
    assert onnxprune.analyze(MODEL, **options, calibration=40, method="l1", only="*stem*").groups


def test_the_stages_one_by_one_choose_what_compress_does() -> None:
    graph = onnxprune.analyze_graph(MODEL)
    options: dict[str, Any] = {"calibration": 40, "threads": 1}
    statistics = onnxprune.gather_statistics(graph, str(DATA), **options)
    plan = onnxprune.select(graph, statistics, "60%")
    whole = onnxprune.compress(MODEL, data=str(DATA), macs="60%", depth_weight=1.0, recover="none", **options)
    assert np.array_equal(plan.keep, whole.plan.keep) and not plan.keep.all()
    small = onnxprune.apply(plan, MODEL)
    assert onnxprune.inspect(small).cost.macs == whole.report.after.macs
    with pytest.raises(UsageError, match="unknown option"):
        onnxprune.gather_statistics(graph, str(DATA), calibrate=40)


def test_select_takes_the_budgets_of_compress() -> None:
    graph = onnxprune.analyze_graph(MODEL)
    plan = onnxprune.select(graph, None, 0.5, method="l1")
    assert not plan.keep.all()
    for budget in (
        "50%",
        np.float32(0.5),
        onnxprune.Budget("macs", relative=0.5),
        onnxprune.inspect(MODEL).cost.macs // 2,
    ):
        assert np.array_equal(onnxprune.select(graph, None, budget, method="l1").keep, plan.keep)


@pytest.mark.parametrize(
    "options",
    [
        *({"budget": budget} for budget in (float("nan"), 1.5, True, None, -1, 0, "half")),
        {"seed": -1},
        {"method": "foo"},
        {"depth_weight": 0.0},
        {"budget": onnxprune.Budget("params", relative=0.5)},
        {"method": "stlp-ib"},
    ],
)
def test_select_refuses_senseless_values(options: dict[str, Any]) -> None:
    graph = onnxprune.analyze_graph(MODEL)
    with pytest.raises(UsageError) as caught:
        onnxprune.select(graph, None, **{"budget": 0.5, "method": "random", **options})
    assert caught.value.hint


@pytest.mark.parametrize(
    "call",
    [
        lambda: onnxprune.inspect(3),  # type: ignore[arg-type]  # the mistake that is tested
        lambda: onnxprune.benchmark([MODEL, None]),  # type: ignore[list-item]  # the mistake that is tested
        lambda: onnxprune.benchmark([]),
        lambda: onnxprune.benchmark(MODEL, runs="3"),  # type: ignore[arg-type]  # the mistake that is tested
        lambda: onnxprune.benchmark(MODEL, threads=-1),
        lambda: onnxprune.benchmark(MODEL, batch=8, shape=(1, 3, 32, 32)),
        lambda: onnxprune.benchmark(MODEL, shape="1x3"),
        lambda: onnxprune.benchmark(MODEL, shape="small"),
        lambda: onnxprune.select("m.onnx", None, 0.5),  # type: ignore[arg-type]  # the mistake that is tested
        lambda: onnxprune.inspect(MODEL, input_shapes=(1, 3, 8, 8)),  # type: ignore[arg-type]  # as above
        lambda: onnxprune.inspect(MODEL, input_shapes={"images": "1x3"}),
        lambda: onnxprune.inspect(MODEL, input_shapes={"images": 3}),  # type: ignore[dict-item]  # as above
        lambda: onnxprune.evaluate(MODEL, data=DATA, output="x"),
        lambda: onnxprune.compress(MODEL, save_plan="x", **OPTIONS),
        lambda: onnxprune.evaluate(MODEL, dat=DATA),
        lambda: onnxprune.evaluate(CompressConfig(MODEL), data=DATA),
        lambda: onnxprune.compress(MODEL, model=MODEL, **OPTIONS),
    ],
)
def test_the_stages_refuse_what_is_no_model_or_no_option(call: Callable[[], object]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert caught.value.hint


def test_statistics_that_are_missing_are_named() -> None:
    graph = onnxprune.analyze_graph(MODEL)
    for statistics in (None, {}, {"other": None}, 3):
        with pytest.raises(UsageError, match="needs statistics"):
            onnxprune.select(graph, statistics, 0.5)  # type: ignore[arg-type]  # the mistake that is tested


def test_benchmark_takes_shapes_as_the_command_line_does() -> None:
    reports = [
        onnxprune.benchmark(MODEL, runs=1, threads=1, **options)
        for options in ({"shape": "4x1x8x8"}, {"shape": (4, 1, 8, 8), "batch": np.int64(4)}, {"batch": 4})
    ]
    assert [report.batch for report in reports] == [4, 4, 4]


def test_scores_that_are_not_numbers_are_reported() -> None:
    model = onnx.load(MODEL)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["inner" if name == output else name for name in node.output]
    model.graph.node.extend([helper.make_node("Log", ["inner"], [output])])
    report = onnxprune.evaluate(CompressConfig(model, data=str(DATA), split=":50"))
    assert any("the model gives scores that are not numbers" in warning for warning in report.warnings)


def test_a_weight_that_is_no_number_is_named() -> None:
    model = onnx.load(MODEL)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    value = onnx.numpy_helper.to_array(tensor).copy()
    value[0, 0, 0, 0] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    with pytest.raises(ModelError, match=tensor.name):
        onnxprune.compress(model, data=str(DATA), macs=0.5)


def class_folders(root: Path, numbers: list[int], count: int = 6) -> Path:
    """Images of some digits in class folders called c0, c1, ..."""
    with np.load(DATA) as stored:
        images, labels = stored["images"], stored["labels"]
    for number in numbers:
        folder = root / f"c{number}"
        folder.mkdir(parents=True)
        for index, image in enumerate(images[labels == number][:count]):
            Image.fromarray(image[..., 0] if image.ndim == 3 else image).save(folder / f"{index}.png")
    return root


def test_named_classes_of_the_evaluation_data_are_those_of_the_calibration_data(tmp_path: Path) -> None:
    """Names number classes by their order, so that a class less would shift the others."""
    whole = class_folders(tmp_path / "whole", list(range(10)))
    part = class_folders(tmp_path / "part", [0, *range(2, 10)])
    report = compress(str(whole), eval_data=str(part)).report
    assert report.before.metrics["top1"] > 90.0
    assert not any("may not be the model's" in warning for warning in report.warnings)
    report = compress(str(part), eval_data=str(whole)).report
    assert report.before.metrics["top1"] > 90.0 and "c9" in report.data["classes"]
    assert not any("may not be the model's" in warning for warning in report.warnings)
    other = class_folders(tmp_path / "other", [0, 1])
    with pytest.raises(DataError, match="has a class 'c1' that the calibration data lacks, which has 'c2'"):
        compress(str(part), eval_data=str(other))


def test_names_of_other_classes_than_the_models_are_warned_of(tmp_path: Path) -> None:
    part = str(class_folders(tmp_path, list(range(1, 10))))
    said = "the data names 9 classes, the model has 10: their numbers may not be the model's"
    assert said in compress(part).report.warnings
    assert said in onnxprune.evaluate(MODEL, data=part).warnings


def test_remarks_on_the_evaluation_data_are_passed_on() -> None:
    images, labels = arrays()
    report = compress((images, labels), eval_data="synthetic").report
    assert any(warning.startswith("evaluation data: synthetic data") for warning in report.warnings)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": ":200", "eval_split": ":300"}, "64 of 300 evaluation samples are calibration samples too"),
        ({"eval_data": str(DATA), "split": ":64", "eval_split": "32:96"}, "32 of 64 evaluation samples are"),
        ({"split": ":200", "eval_split": "200:300"}, None),
    ],
)
def test_samples_that_calibrate_and_judge_are_counted(options: dict[str, Any], said: str | None) -> None:
    report = compress(str(DATA), calibration=64, **options).report
    found = [warning for warning in report.warnings if "calibration samples too" in warning]
    assert (not found) if said is None else found[0].startswith(said)


def test_classes_that_calibration_leaves_nothing_of_are_counted() -> None:
    images, labels = arrays()
    kept = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:2]])
    report = compress((images[kept], labels[kept]), calibration=4).report
    assert any("leaves samples of 1 of 2 classes to judge by" in warning for warning in report.warnings)


def test_scores_at_several_positions_are_said_to_be_classes() -> None:
    b = Builder()
    hidden = b.relu(b.conv(b.input((1, 1, 8, 8), dynamic=True), 6, 3))
    model = b.model(b.conv(hidden, 5, 3))
    report = onnxprune.compress(model, data=arrays()[0], **OPTIONS).report
    assert any("each of the 5 x 8 x 8 scores of output" in warning for warning in report.warnings)
    evaluated = onnxprune.evaluate(model, data=arrays())
    assert any("each of the 5 x 8 x 8 scores of output" in warning for warning in evaluated.warnings)
    assert not any("each of the" in warning for warning in compress(arrays()).report.warnings)
