"""The page in a real browser: nothing complains, and every picture can be seen, on a desk and on a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import report_documents as documents

from fffconvert.reporting import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
]
PROBE = """
<script>
const shown = window.getComputedStyle(document.body);
document.querySelectorAll("details").forEach(one => one.open = true);
const found = {
  width: window.innerWidth, page: document.documentElement.scrollWidth, paper: shown.backgroundColor,
  ink: shown.color,
  pictures: [...document.querySelectorAll("figure svg")].map(svg => {
    const box = svg.getBoundingClientRect(), text = svg.querySelector("text");
    return {left: box.left, width: box.width, height: box.height,
            marks: svg.querySelectorAll("path, use").length, letters: text.getBoundingClientRect().height,
            ink: getComputedStyle(text).fill};
  }),
};
console.log("probed");
document.body.innerHTML = "<pre id='probe'></pre>";
document.getElementById("probe").textContent = JSON.stringify(found);
</script>
"""
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: install chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report, with a script at its end that measures it."""
    folder = documents.everything(tmp_path_factory.mktemp("browser") / "out")
    text = report([folder]).html.read_text(encoding="utf-8")
    (folder / "probed.html").write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    return folder / "probed.html"


def browse(page: Path, profile: Path, *flags: str) -> tuple[dict, list[str]]:
    """What the script found, and what the console said."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert probe is not None, done.stdout[-500:]
    return json.loads(html.unescape(probe[1])), re.findall(r'CONSOLE[^"]*"(.*?)"', done.stderr)


def test_on_a_desk(page: Path, tmp_path: Path):
    found, console = browse(page, tmp_path, "--window-size=1200,900")
    assert console == ["probed"]
    assert found["page"] <= found["width"] == 1200
    assert len(found["pictures"]) == 16
    for picture in found["pictures"]:
        assert picture["width"] > 350
        assert picture["height"] > 80
        assert picture["marks"] > 4
        assert picture["letters"] > 9


def test_on_a_phone_nothing_is_cut_off(page: Path, tmp_path: Path):
    # Headless windows have a least width of 500, so the phone is a frame within one.
    frame = page.with_name("phone.html")
    frame.write_text(f'<iframe src="{page.name}" width="390" height="844" style="border:0"></iframe>')
    script = """<script>onload = () => {
      const inner = document.querySelector("iframe").contentDocument.getElementById("probe").textContent;
      document.body.innerHTML = "<pre id='probe'></pre>";
      document.getElementById("probe").textContent = inner;
    }</script>"""
    frame.write_text(frame.read_text() + script)
    found, console = browse(frame, tmp_path, "--allow-file-access-from-files")
    assert console == ["probed"]
    assert found["page"] <= found["width"] == 390
    for picture in found["pictures"]:
        assert 300 < picture["width"] <= 390 - picture["left"]
        assert picture["letters"] > 7.5


def test_in_the_dark_letters_are_light(page: Path, tmp_path: Path):
    light, _ = browse(page, tmp_path / "light")
    dark, console = browse(page, tmp_path / "dark", "--blink-settings=preferredColorScheme=0")
    assert console == ["probed"]
    assert brightness(light["paper"]) > 0.9 > 0.3 > brightness(light["pictures"][0]["ink"])
    assert brightness(dark["paper"]) < 0.2 < 0.7 < brightness(dark["pictures"][0]["ink"])


def brightness(colour: str) -> float:
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    return 0.299 * red + 0.587 * green + 0.114 * blue
