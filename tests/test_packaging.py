"""The package as it is shipped: complete, importable, and set up as the README says."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import onnxprune
from tests.readme import ROOT, marked_block

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed() -> None:
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("onnxprune/**/__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"onnxprune_cli"}


def test_every_requirement_is_pinned_to_a_tested_version() -> None:
    pinned = {
        _normal(line.split("==")[0])
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    project = PROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    names = {_normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in wanted}
    # Where onnxruntime-gpu has no wheel, which is not where these versions were tested.
    assert names - pinned == {"onnxruntime"}


def test_onnxruntime_comes_once_on_every_platform() -> None:
    from packaging.requirements import Requirement

    runtimes = [
        requirement
        for requirement in map(Requirement, PROJECT["project"]["dependencies"])
        if requirement.name.startswith("onnxruntime")
    ]
    platforms = {
        ("linux", "x86_64"): "onnxruntime-gpu",
        ("win32", "AMD64"): "onnxruntime-gpu",
        ("linux", "aarch64"): "onnxruntime",
        ("win32", "ARM64"): "onnxruntime",
        ("darwin", "arm64"): "onnxruntime",
        ("darwin", "x86_64"): "onnxruntime",
    }
    for (system, machine), name in platforms.items():
        environment = {"sys_platform": system, "platform_machine": machine}
        chosen = [r.name for r in runtimes if r.marker is not None and r.marker.evaluate(environment)]
        assert chosen == [name], (system, machine)


def test_ci_runs_the_commands_of_the_readme_and_nothing_of_its_own() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    markers = re.search(r"for name in (.*); do", script)
    assert markers is not None
    assert markers[1].split() == ["run-the-sample", "run-the-tests"]
    assert "git clone" in script
    for word in ("pip", "venv", "pytest", "ruff", "mypy"):
        assert not re.search(rf"\b{word}\b", script), f"{word}: CI must take it from the README"
    for marker in markers[1].split():
        block = marked_block(readme, marker)
        assert "venv .venv" in block and "-c constraints.txt" in block


def test_the_one_test_command_runs_every_check() -> None:
    from tests.__main__ import CHECKS

    assert [check[0] for check in CHECKS] == ["ruff", "ruff", "mypy", "pytest"]
    assert "--strict" in CHECKS[2]


def test_all_public_names_resolve() -> None:
    for name in onnxprune.__all__:
        assert getattr(onnxprune, name) is not None
    assert set(dir(onnxprune)) == set(onnxprune.__all__)


def test_public_functions_are_not_hidden_by_subpackages_of_their_name() -> None:
    script = (
        "import onnxprune, onnxprune.select.budget, onnxprune.evaluate.metrics\n"
        "from onnxprune.select import budget\n"
        "assert callable(onnxprune.select) and callable(onnxprune.evaluate)\n"
        "assert budget.parse_budget is onnxprune.parse_budget\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, onnxprune; print({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_the_wheel_holds_every_module_and_says_its_licence(tmp_path: Path) -> None:
    # Built from a copy: setuptools leaves its work beside the sources, where a second run would find it.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "onnxprune", "cli"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source / name)], check=True)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("onnxprune-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("onnxprune/**/*.py")}
    modules |= {f"onnxprune_cli/{path.name}" for path in (ROOT / "cli").glob("*.py")}
    data = {str(path.relative_to(ROOT)) for path in ROOT.glob("onnxprune/**/*.jinja")} | {
        "onnxprune/py.typed"
    }
    assert modules | data <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "samples", "cli/")) for name in names)


def test_importing_the_sources_needs_no_folder_of_this_machine() -> None:
    texts = [path for folder in ("onnxprune", "cli", "samples") for path in (ROOT / folder).rglob("*.py")]
    texts += [ROOT / "README.md", ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    for path in texts:
        assert not re.search(r"(?<![\w.])/(work|root|home)/", path.read_text(encoding="utf-8")), path


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
