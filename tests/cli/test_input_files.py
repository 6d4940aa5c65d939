"""What is refused before any work: outputs over code or data that is read, and places that take no model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from onnxprune_cli.main import run

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "quickstart"
BASE = ("compress", "digits.onnx", "--macs", "60%", "--data")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sample and data of all kinds, as the current one, where no work may begin."""

    def work(*arguments: object, **options: object) -> None:
        raise AssertionError("work began before the check")

    monkeypatch.setattr("onnxprune.pipeline.compress", work)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.onnx").write_bytes((SAMPLE / "digits.onnx").read_bytes())
    for name in ("code.py", "package/__init__.py", "package/part.py", "fold/labels.csv", "fold/a/1.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("theirs")
    (tmp_path / "link").symlink_to("fold")
    (tmp_path / "code_link.json").symlink_to("code.py")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(item.relative_to(folder)): os.readlink(item) if item.is_symlink() else item.read_bytes()
        for item in folder.rglob("*")
        if item.is_symlink() or item.is_file()
    }


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert run([*BASE, *options]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint: ")
    return error


@pytest.mark.parametrize(
    ("data", "output"),
    [
        ("code.py:batches", "code.py"),
        ("code.py:batches", "code_link.json"),
        ("./code.py:batches", "code.py"),
        ("code:batches", "code.py"),
        ("package:batches", "package/__init__.py"),
        ("package.part:batches", "package/part.py"),
        ("package.part:batches", "package/__init__.py"),
        ("fold", "fold/labels.csv"),
        ("fold", "link/a/1.png"),
        ("link", "fold/labels.csv"),
        (".", "fold/labels.csv"),
    ],
)
@pytest.mark.parametrize("option", ["--json", "-o"])
def test_no_result_goes_over_code_or_a_folder_of_data(
    here: Path, capsys: pytest.CaptureFixture[str], data: str, output: str, option: str
) -> None:
    before = contents(here)
    force = ["--force"] if option == "-o" else []
    assert "never overwritten" in refused(capsys, data, option, output, *force)
    assert contents(here) == before


def test_a_folder_of_data_may_take_new_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second time it is there, but no data
        assert run([*BASE, "fold", "--json", "fold/new.json"]) == 1
        assert "work began" in capsys.readouterr().err
        (here / "fold" / "new.json").write_text("{}")


@pytest.mark.parametrize("name", ["pipe", "to_pipe", "to_null", "loop", "x" * 256, "/dev/null"])
def test_a_model_goes_to_files_only(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    os.mkfifo(here / "pipe")
    (here / "to_pipe").symlink_to("pipe")
    (here / "to_null").symlink_to("/dev/null")
    (here / "loop").symlink_to("loop")
    refused(capsys, "synthetic", "-o", name, "--force")
    assert (here / "to_null").is_symlink() and (here / "pipe").is_fifo() and (here / "loop").is_symlink()


def test_a_model_does_not_replace_the_file_that_standard_output_goes_to(here: Path) -> None:
    (here / "link.onnx").symlink_to("/dev/stdout")
    command = [sys.executable, "-m", "onnxprune", *BASE, "synthetic", "-o", "link.onnx", "--force"]
    with (here / "out.txt").open("w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "stands for a device" in done.stderr
    assert (here / "link.onnx").is_symlink() and (here / "out.txt").read_bytes() == b""


@pytest.mark.parametrize("name", ["new.onnx", "x" * 252])
def test_the_weights_file_is_checked_as_well(
    here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    onnx.save(onnx.load("digits.onnx"), "digits.onnx", save_as_external_data=True, location="weights")
    (here / "new.onnx.data").write_text("theirs")
    refused(capsys, "synthetic", "-o", name)
    assert (here / "new.onnx.data").read_text() == "theirs"
