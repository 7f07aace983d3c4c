"""A small service around a converted sentence encoder: `uvicorn --app-dir recipes/serve app:app`."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from fastapi import FastAPI
from pydantic import BaseModel, Field
from sentence_transformers import SentenceTransformer

import fffconvert  # noqa: F401  (teaches transformers to read converted models)

MOST_SENTENCES = 256


class Sentences(BaseModel):
    """What a client sends."""

    sentences: list[str] = Field(min_length=1, max_length=MOST_SENTENCES)


class Embeddings(BaseModel):
    """What it gets back, in the same order."""

    embeddings: list[list[float]]


class Health(BaseModel):
    """State of the service."""

    model: str
    memory_mb: float


def create_app(model: str) -> FastAPI:
    """Make the service.

    Args:
        model: A folder, converted or not, or a hub id.
    """
    torch.set_num_threads(int(os.environ.get("FFFCONVERT_THREADS", "1")))
    encoder = SentenceTransformer(model, device="cpu")
    encoder.encode(["warm up"])
    service = FastAPI(title="Sentence embeddings")

    @service.post("/embed")
    def embed(request: Sentences) -> Embeddings:
        found = encoder.encode(request.sentences, show_progress_bar=False)
        return Embeddings(embeddings=found.tolist())

    @service.get("/health")
    def health() -> Health:
        return Health(model=model, memory_mb=_memory_mb())

    return service


def _memory_mb() -> float:
    """Memory that this process has now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


def __getattr__(name: str) -> FastAPI:
    if name != "app":
        raise AttributeError(name)
    return create_app(os.environ["FFFCONVERT_MODEL"])
