"""Make a converted model compute as fast as it can where it will run, and write it for other runtimes."""

from __future__ import annotations

from fffconvert.deployment.files import export
from fffconvert.deployment.folder import deploy, deploy_folder
from fffconvert.deployment.layers import LayerDeployment, deploy_layers
from fffconvert.deployment.linear import LinearDeployment
from fffconvert.deployment.timing import TOKENS

__all__ = [
    "TOKENS",
    "LayerDeployment",
    "LinearDeployment",
    "deploy",
    "deploy_folder",
    "deploy_layers",
    "export",
]
