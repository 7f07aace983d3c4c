"""Pages of the site that are not written in docs/: a hook of MkDocs.

The command reference is read off the command line and the Python reference off `fffconvert.__all__`; the
README, the changelog, the notebooks and others are taken from where they lie. Links are written for the
repository, and turned to the site's pages here.
"""

from __future__ import annotations

import html
import inspect
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "recipes/experiments/README.md": "experiments.md",
    "recipes/serve/README.md": "serve.md",
    "notebooks": "notebooks/index.md",
    **{f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in NOTEBOOKS},
}
"""Where on the site a file of the repository is found; what lies in docs/ keeps its name."""
LINK = re.compile(r"(?<=\]\()[^)\s:#]+(?=[)#])")
HELP = re.compile(r"(.*?)(?:  \[(.*)\])?", re.DOTALL)
"""What is said about an option, then `[default: …]` and the like."""


def on_config(config: Any) -> Any:
    """List the notebooks in the navigation."""
    for entry in config.nav:
        if "Notebooks" in entry:
            entry["Notebooks"] = ["notebooks/index.md", *(f"notebooks/{path.stem}.md" for path in NOTEBOOKS)]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to files of the repository into links to the site's pages."""
    return to_site(markdown, page.file.src_uri)


def pages() -> dict[str, str]:
    """The text of each page that is made, by its name on the site."""
    made = {"commands.md": commands(), "api.md": api(), "notebooks/index.md": notebook_list()}
    for source, name in PLACES.items():
        if source.endswith(".md"):
            made[name] = (ROOT / source).read_text(encoding="utf-8")
        elif source.endswith(".ipynb"):
            made[name] = from_notebook(ROOT / source)
    return made


def to_site(markdown: str, page: str) -> str:
    """A page's text with its relative links turned from the repository's files to the site's pages."""
    source = next((source for source, name in PLACES.items() if name == page), f"docs/{page}")
    folder = posixpath.dirname(source)

    def turned(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[0]))
        name = PLACES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(name, posixpath.dirname(page) or ".")

    return LINK.sub(turned, markdown)


def commands() -> str:
    """The command reference."""
    from typer.main import get_command

    from fffconvert.cli import app

    return "\n\n".join(["# Commands", *sections(get_command(app), "fffconvert"), ""])


def sections(command: Any, path: str) -> Iterator[str]:
    """A command's section, and those of the commands below it."""
    context = command.context_class(command, info_name=path)
    below = {name: each for name, each in getattr(command, "commands", {}).items() if not each.hidden}
    usage = command.get_usage(context).removeprefix("Usage: ")
    yield f"## {path}\n\n```\n{usage}\n```\n\n{plain(command.help)}"
    if rows := list(parameters(command, context)):
        yield "\n".join(["| | default | |", "| --- | --- | --- |", *rows])
    for name, each in below.items():
        yield from sections(each, f"{path} {name}")


def parameters(command: Any, context: Any) -> Iterator[str]:
    """A row of the table for each argument and option that `--help` shows."""
    for parameter in command.params:
        if record := parameter.get_help_record(context):
            names, about = record
            text, default = HELP.fullmatch(about).groups(default="")
            yield f"| `{names}` | {plain(default.removeprefix('default: '))} | {plain(text)} |"


def plain(text: str | None) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text or "", quote=False))


def api() -> str:
    """The Python reference: functions, then classes."""
    import fffconvert

    values = [getattr(fffconvert, name) for name in fffconvert.__all__]
    values.sort(key=inspect.isclass)
    entries = [f"::: {value.__module__}.{value.__qualname__}" for value in values]
    return "\n\n".join(["# Python", "All of it stands in `import fffconvert as fff`.", *entries, ""])


def notebook_list() -> str:
    """The page that lists the notebooks, by their titles."""
    titles = {path: from_notebook(path).splitlines()[0].lstrip("# ") for path in NOTEBOOKS}
    entries = [f"- [{title}](notebooks/{path.name})" for path, title in titles.items()]
    return "\n".join(["# Notebooks", "", *entries, ""])


def from_notebook(path: Path) -> str:
    """A notebook with what it printed and drew, as Markdown."""
    return (
        "\n\n".join(cell_text(cell) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]) + "\n"
    )


def cell_text(cell: dict[str, Any]) -> str:
    """A cell with what stands below it."""
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return source
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        shown = output.get("data", {})
        if "image/png" in shown:
            parts.append(f"![](data:image/png;base64,{shown['image/png'].strip()})")
        elif text := "".join(output.get("text", shown.get("text/plain", ""))).rstrip():
            parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts)
