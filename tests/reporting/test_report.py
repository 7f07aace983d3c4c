"""The page says what the folders hold, names what they do not, and stands alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import report_documents as documents
from typer.main import get_command
from typer.testing import CliRunner

from fffconvert.cli import app
from fffconvert.errors import FFFError
from fffconvert.hub.card import QUALITY_ENDS, QUALITY_STARTS
from fffconvert.reporting import report
from fffconvert.reporting.writing import build

VOID = {"meta", "link", "br", "img", "hr", "input"}
SECTIONS = [
    "converted",
    "quality",
    "training",
    "speed",
    "robustness",
    "ablation",
    "sweep",
    "routing",
    "recipe",
    "machine",
    "limits",
]


class Checker(HTMLParser):
    """Collects ids, links and text, and notices tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(html: str) -> Checker:
    found = Checker()
    found.feed(html)
    assert not found.open
    assert len(found.ids) == len(set(found.ids))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return documents.everything(tmp_path_factory.mktemp("report") / "out")


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return report([folder]).html.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_needs_nothing_beside_it(html: str):
    found = check(html)
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert set(SECTIONS) <= set(found.ids)
    assert "missing" not in found.ids
    assert not re.search(r"url\((?!#)|@import|<script", html)


def test_pictures_are_svg_with_a_description_and_colours_of_the_page(html: str):
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) == 16
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.get("role") == "img"
        assert len(root.get("aria-label", "")) > 20
        assert "viewBox" in root.attrib
        assert "width" not in root.attrib
        assert "var(--ink, #101112)" in picture
        assert "#000000" not in picture


def test_figures_are_those_of_the_documents(html: str):
    text = " ".join(check(html).text)
    for expected in ("0.790", "0.770 to 0.810", "96.3%", "62.5%", "1.90x", "16,092,000"):
        assert expected in text


def test_inputs_without_a_teacher_have_no_row_in_the_picture_of_what_is_retained(html: str):
    retained = [
        picture for picture in re.findall("<svg.*?</svg>", html, re.DOTALL) if "retains of" in picture
    ]
    assert len(retained) == 1
    assert "tweets" in retained[0]
    assert "statutes" not in retained[0]


def test_says_plainly_where_a_control_is_not_beaten(html: str, folder: Path):
    text = " ".join(" ".join(check(html).text).split())
    assert "is not beaten on cola (0.300 against 0.360): the trees bought nothing there" in text
    assert "same active width” and the conversion cannot be told apart on rte (0.610 against 0.620)" in text
    assert "blocks ablated” is beaten on sts-b (0.790 against 0.740)" in text
    assert "blocks ablated” was not decided on when it was measured on mlm (3.100 against 4.400)" in text
    assert "first 100 only" in text
    assert "Deleting all blocks costs nothing that shows on rte:" in text
    assert text.count("unclear") == 2  # in the row of rte, and where recovered is explained


def test_words_of_a_vocabulary_do_no_harm(html: str, folder: Path):
    assert "&lt;b&gt;the&lt;/b&gt; 120" in html
    assert "<b>the</b>" not in html
    row = next(
        line for line in (folder / "report.md").read_text().splitlines() if "the" in line and "120" in line
    )
    assert r"\<b>the\</b> 120, a\|b 80, \`of\` 7" in row


def test_markdown_tables_are_tables(html: str, folder: Path):
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    heads = [n for n, line in enumerate(lines) if re.fullmatch(r"\|( -+:? \|)+", line)]
    assert len(heads) >= 9
    for n in heads:
        columns = lines[n].count("|")
        assert lines[n - 1].count("|") == columns
        assert len(re.findall(r"(?<!\\)\|", lines[n + 1])) == columns
        assert not lines[n - 2]


def test_what_is_missing_is_named_with_its_command(tmp_path: Path):
    folder = documents.write(tmp_path / "out", metrics=documents.metrics(), recipe=documents.recipe())
    done = report([folder])
    assert [section.name for section in done.page.present] == ["converted", "recipe", "limits"]
    html = done.html.read_text(encoding="utf-8")
    for name in ("Quality", "Training", "Speed", "Robustness", "Ablation", "Sweep", "Routing", "Machine"):
        assert re.search(rf"<li>{name}.*<code>fffconvert [^<]+</code></li>", html)
        assert name in done.markdown.read_text(encoding="utf-8")
    assert "Nothing has been trained" in html


def test_a_folder_with_a_sweep_alone(tmp_path: Path):
    folder = documents.write(tmp_path / "sweep", sweep=documents.sweep())
    page = report([folder]).page
    assert [section.name for section in page.present] == ["sweep", "limits"]


def test_empty_documents_are_missing_ones(tmp_path: Path):
    folder = documents.write(
        tmp_path / "out",
        metrics={"blocks": []},
        eval={"tasks": {}, "robustness": {"rows": []}, "ablation": {"rows": []}, "routing": {"layers": []}},
        bench={"rows": []},
        sweep={"rows": [], "pareto": []},
        training=[],
    )
    assert [section.name for section in report([folder]).page.present] == ["limits"]


def test_numbers_that_are_none_or_nan_are_dashes(tmp_path: Path):
    bare = {"metric": "spearman", "value": 0.5, "ci95": None, "n": 10}
    blocks = documents.metrics()
    for block in blocks["blocks"]:
        block |= {"r2_heldout": None, "token_r2_heldout": float("nan"), "dead_node_share": None}
    folder = documents.write(tmp_path / "out", metrics=blocks, eval={"tasks": {"sts-b": bare}})
    done = report([folder])
    html = done.html.read_text(encoding="utf-8")
    assert "<td>–</td>" in html
    assert "nan" not in " ".join(check(html).text).lower().split()
    assert "Not held against" in html


def test_several_folders_stand_side_by_side(tmp_path: Path):
    evaluation = {"tasks": documents.evaluation()["tasks"]}
    parts = {"recipe": documents.recipe(), "eval": evaluation}
    first = documents.write(tmp_path / "first", metrics=documents.metrics(), **parts)
    second = documents.write(tmp_path / "second", metrics=documents.metrics(control="dense"), **parts)
    with pytest.raises(FFFError, match="2 folders are reported on; say where"):
        report([first, second])
    done = report([first, second], tmp_path / "page")
    html = done.html.read_text(encoding="utf-8")
    check(html)
    assert done.page.overview is not None
    assert [row[0] for row in done.page.overview.rows] == ["first", "second"]
    assert "This folder is a control, not a conversion: dense" in html
    assert html.count("<h3>second</h3>") == html.count("<h3>first</h3>") == 3


def test_folders_of_one_name_are_told_apart(tmp_path: Path):
    folders = [
        documents.write(tmp_path / name / "out", metrics=documents.metrics(layers=1)) for name in ("a", "b")
    ]
    page = report(folders, tmp_path).page
    assert page.overview is not None
    assert [row[0] for row in page.overview.rows] == [str(folder) for folder in folders]


def test_is_the_same_each_time(html: str, folder: Path):
    assert report([folder]).html.read_text(encoding="utf-8") == html


def test_replaces_its_own_page_only(tmp_path: Path):
    folder = documents.write(tmp_path / "out", recipe=documents.recipe())
    (folder / "report.html").write_text("<p>mine</p>")
    with pytest.raises(FFFError, match="was not written by fffconvert"):
        report([folder])
    assert (folder / "report.html").read_text() == "<p>mine</p>"
    assert not (folder / "report.md").exists()


def test_the_card_carries_the_same_figures(tmp_path: Path):
    folder = documents.write(
        tmp_path / "out",
        metrics=documents.metrics(),
        recipe=documents.recipe(),
        eval={"tasks": documents.evaluation()["tasks"]},
    )
    before = (folder / "README.md").read_text()
    assert "Not measured yet" in before
    (folder / "README.md").write_text(before + "\nMy own words.\n")
    report([folder])
    after = (folder / "README.md").read_text()
    assert (
        "| sts-b | spearman | 0.790 | 0.770 to 0.810 | 0.820 | 0.750 | 0.740 | 0.370 | 96.3% | 62.5% |"
        in after
    )
    assert "cola (first 100 rows only)" in after
    assert re.search(r"\| rte \|.*\| unclear \|$", after, re.MULTILINE)
    assert "My own words." in after
    assert after[: after.index(QUALITY_STARTS)] == before[: before.index(QUALITY_STARTS)]
    assert after[after.index(QUALITY_ENDS) :].startswith(before[before.index(QUALITY_ENDS) :])
    report([folder])
    assert (folder / "README.md").read_text() == after


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_command_prints_a_document(tmp_path: Path):
    folder = documents.everything(tmp_path / "out", bench={"rows": []})
    done = run(folder, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["html"] == str(folder / "report.html")
    assert {section["name"] for section in found["sections"]} == set(SECTIONS)
    assert [section["name"] for section in found["sections"] if not section["present"]] == ["speed"]
    assert {finding["tone"] for finding in found["findings"]} == {"good", "bad", "open"}


def test_command_says_what_is_missing(tmp_path: Path):
    folder = documents.write(tmp_path / "out", metrics=documents.metrics(), recipe=documents.recipe())
    done = run(folder)
    assert done.exit_code == 0
    assert f"not measured yet: Speed: fffconvert bench {folder}\n" in done.stdout
    assert "fffconvert sweep somebody/encoder --depths" in done.stdout
    assert f"wrote {folder / 'report.html'}" in done.stdout


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "is no folder"),
        (lambda path: path.mkdir(), "holds none of metrics.json"),
        (lambda path: path.write_text("x"), "is no folder"),
        (lambda path: documents.write(path).joinpath("eval.json").write_text("{"), "cannot read"),
    ],
    ids=["missing", "empty", "file", "broken"],
)
def test_command_refuses_bad_input_in_one_line(tmp_path: Path, make: Any, reason: str):
    make(tmp_path / "out")
    done = run(tmp_path / "out")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert reason in done.stderr


def test_command_refuses_a_place_that_cannot_be_written(tmp_path: Path):
    folder = documents.write(tmp_path / "out", recipe=documents.recipe())
    (tmp_path / "file").write_text("")
    done = run(folder, "-o", tmp_path / "file")
    assert done.exit_code == 2
    assert "choose another --output" in done.stderr


def test_the_commands_that_are_named_exist_with_their_options():
    commands = get_command(app).commands
    for section in build([]).sections:
        if not section.command:
            continue
        _, name, *words = section.command.split()
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options
