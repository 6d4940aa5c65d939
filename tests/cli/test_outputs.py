"""Where results go: never over an input or another result, and in order where writing fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from onnxprune_cli.main import run

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "quickstart"
COMMON = ("--data", "digits.npz", "--split", ":80", "--calibration", "40", "--method", "l1", "--threads", "1",
          "--recover", "none", "--macs", "60%")  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sample in it, as the current one."""
    for name in ("digits.onnx", "digits.npz"):
        (tmp_path / name).write_bytes((SAMPLE / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()}


@pytest.mark.parametrize(
    "options",
    [
        ("compress", *COMMON, "--json", "digits.onnx"),
        ("compress", *COMMON, "--report", "digits.npz"),
        ("compress", *COMMON, "--save-plan", "link.onnx"),
        ("compress", *COMMON, "-o", "out.onnx", "--json", "./out.onnx"),
        ("compress", *COMMON, "--save-plan", "same.json", "--json", "same.json"),
        ("compress", *COMMON, "--config", "c.toml", "--json", "c.toml"),
        ("inspect", "--json", "digits.onnx"),
        ("analyze", "--data", "digits.npz", "--plot", "digits.onnx"),
        ("evaluate", "--data", "digits.npz", "--against", "other.onnx", "--json", "other.onnx"),
        ("benchmark", "other.onnx", "--json", "other.onnx"),
        ("inspect", "--json", "external.bin"),
        ("compress", *COMMON, "-o", "new.onnx", "--json", "new.onnx.data"),
        ("compress", *COMMON, "--report", "nowhere"),
        ("compress", *COMMON, "--report", "-"),
        ("compress", *COMMON, "--report", "x" * 300),
    ],
)
def test_no_result_goes_over_an_input_or_another_result(
    here: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    (here / "c.toml").write_text("seed = 1\n")
    (here / "other.onnx").write_bytes((here / "digits.onnx").read_bytes())
    (here / "link.onnx").symlink_to("digits.onnx")
    (here / "nowhere").symlink_to("no/such/folder")
    if "external.bin" in options:
        onnx.save(
            onnx.load("digits.onnx"), "digits.onnx", save_as_external_data=True, location="external.bin"
        )
    before = contents(here)
    assert run([options[0], "digits.onnx", *options[1:]]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint: ")
    assert contents(here) == before


def test_a_result_replaces_a_file_through_its_link_and_with_its_permissions(here: Path) -> None:
    (here / "latest.json").symlink_to("old.json")
    (here / "old.json").write_text("old")
    (here / "old.json").chmod(0o600)
    assert run(["inspect", "digits.onnx", "--json", "latest.json", "--quiet"]) == 0
    assert (here / "latest.json").is_symlink() and (here / "old.json").read_text().startswith("{")
    assert (here / "old.json").stat().st_mode & 0o777 == 0o600


def test_devices_take_as_much_as_one_likes(here: Path) -> None:
    nowhere = ["--json", "/dev/null", "--report", "/dev/null", "--save-plan", "/dev/null"]
    assert run(["compress", "digits.onnx", *COMMON, *nowhere, "--quiet"]) == 0
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("option", ["--json", "--report", "--save-plan"])
def test_a_result_that_cannot_be_written_is_a_usage_error(
    here: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert run(["compress", "digits.onnx", *COMMON, option, "/dev/full"]) == 2
    assert f"error: {option}: can't write /dev/full" in capsys.readouterr().err


def test_zero_is_a_value_and_not_an_option_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["compress", "digits.onnx", *COMMON]
    for option in (
        "--calibration",
        "--threads",
        "--round-to",
        "--scale",
        "--max-group-ratio",
        "--depth-weight",
    ):
        assert run([*base, option, "0"]) == 2, option
        assert option in capsys.readouterr().err
    assert run([*base, "--max-drop", "0"]) == 4
    (here / "c.toml").write_text("seed = 5\n")
    assert run([*base, "--config", "c.toml", "--seed", "0", "--json", "r.json"]) == 0
    assert '"seed": 0' in (here / "r.json").read_text()


def _command(*arguments: str, prefix: str = "", suffix: str = "") -> subprocess.CompletedProcess[str]:
    line = f"{prefix}{sys.executable} -m onnxprune {' '.join(arguments)}{suffix}"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, env=dict(os.environ)
    )


def test_a_reader_that_has_gone_is_no_bug(here: Path) -> None:
    for options in (["--json", "-"], []):
        done = _command("inspect", "digits.onnx", *options, suffix=" 2>err | true")
        assert done.returncode == 141
        assert "bug" not in (here / "err").read_text() and "BrokenPipe" not in (here / "err").read_text()


def test_a_standard_output_that_is_closed_is_not_missed(here: Path) -> None:
    assert _command("inspect", "digits.onnx", "--json", "r.json", suffix=" >&-").returncode == 0
    assert (here / "r.json").exists()


def test_standard_output_that_is_full_is_a_usage_error(here: Path) -> None:
    done = _command("inspect", "digits.onnx", suffix=" > /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("error: can't write to standard output: ")


def test_what_the_data_prints_stays_out_of_the_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    (here / "noisy.py").write_text(
        "import numpy as np\nprint('on import')\n"
        "def batches():\n    print('in the call')\n    yield np.load('digits.npz')['images'][:60]\n"
    )
    options = [item if item != "digits.npz" else "noisy.py:batches" for item in COMMON]
    assert run(["compress", "digits.onnx", *options, "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["schema"] == 1
    assert "on import" in printed.err and "in the call" in printed.err


def test_a_plan_does_without_data_wherever_it_is_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compress", "digits.onnx", *COMMON, "--dry-run", "--save-plan", "p.json", "--quiet"]) == 0
    (here / "c.toml").write_text('plan = "p.json"\nrecover = "none"\n')
    assert run(["compress", "digits.onnx", "--config", "c.toml", "-o", "small.onnx", "--quiet"]) == 0
    assert (here / "small.onnx").exists()
    assert run(["analyze", "digits.onnx", "--config", "c.toml"]) == 2
    assert "no data is given" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("compress", *COMMON), ("analyze", *COMMON[:-4])])
@pytest.mark.parametrize(
    ("globs", "says"),
    [
        (("--keep", "*"), "--keep leaves nothing to prune"),
        (("--only", "*Relu*"), "--only leaves nothing to prune"),
        (("--keep", "*", "--only", "*"), "--keep and --only leave nothing to prune"),
    ],
)
def test_options_that_leave_nothing_to_prune_are_named(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    globs: tuple[str, ...],
    says: str,
) -> None:
    arguments = [item for item in command if item not in ("--method", "l1")]
    assert run([arguments[0], "digits.onnx", *arguments[1:], *globs]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert says in error and hint.startswith("hint: ")
