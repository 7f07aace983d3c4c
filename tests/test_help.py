"""`--help`: of every command, at every width, with and without a terminal, and without torch."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest
from typer.main import get_command

from fffconvert.cli import app

WHOLE = get_command(app)
COMMANDS = {"fffconvert": WHOLE, **WHOLE.commands}
CODE = """
import sys
from fffconvert.cli import app
for name in sys.argv[1:]:
    print(f"<{name}>")
    try:
        app(["--help"] if name == "fffconvert" else [name, "--help"])
    except SystemExit as end:
        print(f"<{end.code}>")
print(*{"torch", "transformers", "datasets", "matplotlib"} & set(sys.modules))
"""


def read_all(terminal: int) -> Iterator[bytes]:
    """What is written to a terminal until all that write have ended."""
    while True:
        try:
            yield os.read(terminal, 1 << 16)
        except OSError:
            return


def printed(width: int, terminal: bool) -> str:
    """What `--help` of every command prints in one new process."""
    command = [sys.executable, "-c", CODE, *COMMANDS]
    others = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "TERM")}
    if not terminal:
        environment = {**others, "COLUMNS": str(width)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {**others, "TERM": "xterm-256color"}
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        text = b"".join(read_all(ours)).decode().replace("\r", "")
    os.close(ours)
    assert process.returncode == 0, text
    return text


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_command_says_all_that_it_takes(width: int, terminal: bool):
    text = printed(width, terminal)
    for name, command in COMMANDS.items():
        about, found, rest = text.partition(f"<{name}>\n")[2].partition("<0>\n")
        assert found, text
        assert about.lstrip().startswith("Usage:"), about
        shown = "".join(about.split())
        for parameter in command.params:
            assert all(flag in shown for flag in parameter.opts if flag.startswith("-")), parameter.opts
            assert "".join((parameter.help or "").split()) in shown, parameter.name
        assert "".join(command.help.split()) in shown
        if command is WHOLE:
            assert all(f"\n  {other} " in about for other in WHOLE.commands)
    assert rest.strip() == ""  # no such module was imported
