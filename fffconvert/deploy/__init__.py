"""Make a converted model compute as fast as it can where it will run, and write it for other runtimes."""

from __future__ import annotations

from fffconvert.deploy.folder import Settings, deploy_folder
from fffconvert.deploy.layers import LayerDeployment, deploy, deploy_layers
from fffconvert.deploy.linear import LinearDeployment
from fffconvert.deploy.timing import TOKENS

__all__ = [
    "TOKENS",
    "LayerDeployment",
    "LinearDeployment",
    "Settings",
    "deploy",
    "deploy_folder",
    "deploy_layers",
]
