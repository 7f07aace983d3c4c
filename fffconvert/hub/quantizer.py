"""The saved form of a converted model, as transformers' quantizer "fff".

`config.quantization_config` holds the plan: for each block its placement, its layer's specification and the
name of one weight that the original block had. With this, plain `from_pretrained` puts the layers in before
the weights arrive. `fffconvert.hub.saving` writes it.

This module is imported while transformers itself is, so it imports nothing that needs a model.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from fffconvert import __version__
from fffconvert.errors import FFFError
from fffconvert.private_names import ignore_unexpected

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

METHOD = "fff"
SCHEMA_VERSION = 1
ALIGNMENT = 64
"""Bytes; torch aligns what it allocates on the CPU so."""
_KEYS = ("quant_method", "schema_version", "fffconvert_version", "base_model", "modules", "deployment")


class FFFConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What a converted model's config says about its FFF layers.

    Attributes:
        modules: For each block, by name: `placement`, `spec` and `dense_weight` as plain values.
        base_model: Name of the model that was converted.
        fffconvert_version: The release that wrote it.
        schema_version: Version of this form.
        deployment: How the model is to be computed, as plain values; None for one that was not deployed.
    """

    deployment: dict[str, Any] | None = None

    def __init__(
        self,
        modules: dict[str, dict[str, Any]],
        base_model: str | None = None,
        fffconvert_version: str = __version__,
        schema_version: int = SCHEMA_VERSION,
        deployment: dict[str, Any] | None = None,
    ) -> None:
        self.quant_method = METHOD
        self.schema_version = schema_version
        self.fffconvert_version = fffconvert_version
        self.base_model = base_model
        self.modules = modules
        if deployment is not None:  # older releases warn of keys that they do not know
            self.deployment = deployment

    def get(self, key: str, default: Any = None) -> Any:
        """An attribute; transformers asks the config of a model in memory as it asks one read from a file."""
        return getattr(self, key, default)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> FFFConfig:
        """Read the stored form. Unknown keys are dropped with a warning.

        Raises:
            FFFError: A newer release wrote it in a form that this one cannot read, or it is malformed.
        """
        version, writer = config_dict.get("schema_version"), config_dict.get("fffconvert_version")
        if not isinstance(version, int) or version < 1:
            raise FFFError(f"schema_version of the FFF layers is {version!r}; expected 1 to {SCHEMA_VERSION}")
        if version > SCHEMA_VERSION:
            raise FFFError(
                f"the FFF layers are stored in schema {version}, fffconvert {__version__} reads up to "
                f"{SCHEMA_VERSION}; pip install 'fffconvert>={writer}'"
            )
        unknown = sorted(set(config_dict) - set(_KEYS))
        if unknown:
            warnings.warn(
                f"ignored unknown keys of the FFF layers' config: {', '.join(unknown)}", stacklevel=2
            )
        if not isinstance(config_dict.get("modules"), dict):
            raise FFFError("the FFF layers' config names no modules; convert the model again")
        return cls(**{key: config_dict[key] for key in _KEYS[1:] if key in config_dict})


class FFFQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts FFF layers into a model that transformers is loading."""

    quantization_config: FFFConfig

    def _process_model_before_weight_loading(
        self,
        model: PreTrainedModel,
        checkpoint_files: list[str] | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        """Replace the blocks of a model on the meta device by layers of the planned shape.

        Raises:
            FFFError: The plan fits neither the model nor the tensors in the checkpoint.
        """
        from fffconvert.hub.saved_plan import install_plan

        plan = install_plan(model, self.quantization_config.modules, checkpoint_files, dtype)
        self.quantization_config.modules = plan
        prefix = f"{model.base_model_prefix}."
        guards = {re.escape(layer["dense_weight"].removeprefix(prefix)) + "$" for layer in plan.values()}
        ignore_unexpected(model, guards)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        """Make the model one to work with.

        Trainer, `.half()` and `.float()` refuse models marked as quantised. And in the file that is mapped
        into memory weights may lie at odd addresses, which costs speed and changes the last bit.
        """
        import fffconvert.hub.saving  # noqa: F401 (this copy of the package will save what it has read)

        model.is_quantized = False
        del model.hf_quantizer, model.quantization_method  # what saving needs follows from the layers
        for parameter in model.parameters():
            if parameter.data_ptr() % ALIGNMENT:
                parameter.data = parameter.data.clone()
        if self.quantization_config.deployment is not None:
            from fffconvert.hub.deployment import Deployment, apply
            from fffconvert.records import read

            stored = self.quantization_config.deployment
            apply(model, read(Deployment, stored, "the deployment in the config", "checkpoint"))

    def is_serializable(self) -> bool:
        """Converted models can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Converted models can be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Converted models can be compiled."""
        return True


# Not by the functions that register, which refuse a second time: modules may be imported again.
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = FFFConfig
AUTO_QUANTIZER_MAPPING[METHOD] = FFFQuantizer
