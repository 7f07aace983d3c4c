"""The site: every command, option and public name is on it, and no link leads nowhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import fffconvert
from fffconvert.cli import app

ROOT = Path(__file__).parent.parent
if not (ROOT / "docs").is_dir():
    pytest.skip("the documentation is not part of an sdist", allow_module_level=True)

SPEC = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
PAGES = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(PAGES)
WRITTEN = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").rglob("*.md")),
]


def commands(command: Any, path: str = "fffconvert") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{path} {name}")


@pytest.mark.parametrize(("path", "command"), [*commands(get_command(app))])
def test_every_command_and_option_is_explained(path: str, command: Any):
    _, found, section = PAGES.commands().partition(f"\n## {path}\n")
    section = section.partition("\n## ")[0]
    assert found
    assert command.help
    assert PAGES.plain(command.help) in section
    for parameter in command.params:
        assert parameter.help, parameter.name
        assert PAGES.plain(parameter.help) in section
        assert all(option in section for option in parameter.opts if option.startswith("-"))


def test_every_public_name_is_in_the_reference():
    entries = {line.rpartition(".")[2] for line in PAGES.api().splitlines() if line.startswith("::: ")}
    assert entries == set(fffconvert.__all__)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file(path: Path):
    for target in PAGES.LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_links_are_turned_to_pages():
    text = "[a](docs/speed.md#int8) [b](notebooks) [c](https://a.b/docs/c.md) [d](recipes/serve/README.md)"
    turned = "[a](speed.md#int8) [b](notebooks/index.md) [c](https://a.b/docs/c.md) [d](serve.md)"
    assert PAGES.to_site(text, "index.md") == turned
    assert PAGES.to_site("[a](../../README.md)", "serve.md") == "[a](index.md)"
    assert PAGES.to_site("[a](../README.md) ![b](b.png)", "speed.md") == "[a](index.md) ![b](b.png)"


def test_a_notebook_is_shown_with_what_it_printed_and_drew():
    output = [
        {"text": ["1\n", "2\n"]},
        {"data": {"image/png": "QQ==\n", "text/plain": "a figure"}},
        {"data": {"text/plain": ["3"]}},
    ]
    cell = {"cell_type": "code", "source": ["print(1)\n", "print(2)"], "outputs": output}
    assert PAGES.cell_text(cell) == (
        "```python\nprint(1)\nprint(2)\n```\n\n```text\n1\n2\n```\n\n"
        "![](data:image/png;base64,QQ==)\n\n```text\n3\n```"
    )
