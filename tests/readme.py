"""What a README states, for the tests that hold it to it.

``python -m tests.readme`` writes the commands' current help pages into the README.
"""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
_HELP_BLOCK = re.compile(r"<!-- help: onnxprune ?(\w*) -->\n```text\n(.*?)```\n", re.DOTALL)
_SHELL_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def help_page(command: str) -> str:
    """What ``onnxprune COMMAND --help`` prints on a terminal of 100 columns."""
    from onnxprune_cli.main import group

    arguments = [command, "--help"] if command else ["--help"]
    result = CliRunner().invoke(group, arguments, prog_name="onnxprune", terminal_width=100)
    assert result.exit_code == 0, result.output
    return result.output


def stated_help(text: str) -> dict[str, str]:
    """The help pages that a README states, by command; "" is the program's own."""
    return dict(_HELP_BLOCK.findall(text))


def shell_blocks(text: str) -> list[str]:
    """The ``sh`` blocks of a README, in order."""
    return _SHELL_BLOCK.findall(text)


def marked_block(text: str, marker: str) -> str:
    """The ``sh`` block that follows the comment ``marker``."""
    match = re.search(rf"<!-- {re.escape(marker)} -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert match is not None, f"README.md has no block marked {marker}"
    return match[1]


def main() -> None:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")

    def filled(match: re.Match[str]) -> str:
        name = f"onnxprune {match[1]}".strip()
        return f"<!-- help: {name} -->\n```text\n{help_page(match[1])}```\n"

    path.write_text(_HELP_BLOCK.sub(filled, text), encoding="utf-8")


if __name__ == "__main__":
    main()
