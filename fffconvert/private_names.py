"""The private names of torch and transformers that the package lives on, all of them, and what each is for.

What has a public way takes that one. `tests/test_private_names.py` says when a release of theirs drops one of
these, and when one is used that is not here. Nothing of theirs is imported before it is asked for.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch._C import _get_tracing_state as _get_tracing_state
    from torch._C import _len_torch_dispatch_stack as _len_torch_dispatch_stack
    from torch._C._functorch import is_functorch_wrapped_tensor as is_functorch_wrapped_tensor
    from torch._inductor import aoti_compile_and_package as aoti_compile_and_package
    from torch._ops import OpOverload as OpOverload
    from torch.cpu import _is_vnni_supported as _is_vnni_supported
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
    from torch.utils._python_dispatch import _disable_current_modes as _disable_current_modes


@dataclass(frozen=True)
class Private:
    """One name.

    Attributes:
        path: Where it is, as `pkgutil.resolve_name` takes it; of attributes, the class that has them.
        use: What it is for.
        without: What breaks if it goes.
    """

    path: str
    use: str
    without: str

    @property
    def name(self) -> str:
        """The name itself."""
        return self.path.replace(":", ".").rpartition(".")[2]


IMPORTED = (
    Private(
        "torch.utils._python_dispatch:TorchDispatchMode",
        "sees each operation of a run: `locate` records it, `estimate` lets models without weights run",
        "locating and estimating",
    ),
    Private(
        "torch.utils._python_dispatch:_disable_current_modes",
        "operations recorded whole are not recorded once more in parts",
        "locating: linear maps would fall apart",
    ),
    Private("torch._ops:OpOverload", "tells torch's operations from functions in a graph", "locating"),
    Private(
        "torch._C:_len_torch_dispatch_stack",
        "whether a mode looks on, so that layers call the op and not the kernel itself",
        "recording and counting converted models",
    ),
    Private("torch._C._functorch:is_functorch_wrapped_tensor", "the same of vmap and grad", "torch.func"),
    Private("torch._C:_get_tracing_state", "the same of torch.jit.trace, and quick to ask", "torch.jit"),
    Private("torch.cpu:_is_vnni_supported", "which of torch's int8 engines is fast here", "int8 linear maps"),
    Private("torch._inductor:aoti_compile_and_package", "documented, but so named", "export --format aot"),
)
"""What other modules import from here by its own name."""

ATTRIBUTES = (
    Private("torch:Tensor._version", "whether a parameter was written to", "layers deployed with other rows"),
    Private("torch:UntypedStorage._cdata", "which tensors share memory, on the meta device too", "locating"),
    Private("torch._ops:OpOverload._schema", "what an operation writes to, and its name", "locating"),
    Private("torch.nn:Module._parameters", "a layer's parameters without a look-up for each", "its speed"),
    Private("torch.nn:Module._apply", "a layer that is moved or cast prepares anew", "stale rows"),
    Private("torch.nn:Module._load_from_state_dict", "a layer that loads prepares anew", "stale rows"),
    Private("torch.nn:Module._save_to_state_dict", "int8 maps are saved in floating point", "saving them"),
    Private("transformers:PreTrainedConfig._attn_implementation", "how a model attends", "our attention"),
    Private(
        "transformers:PreTrainedModel._can_set_attn_implementation",
        "whether a model can attend otherwise",
        "our attention",
    ),
    Private("transformers:PreTrainedModel._from_config", "builds what has no from_config", "dry runs"),
    Private("transformers:PreTrainedModel._no_split_modules", "what FSDP wraps", "distilling with FSDP"),
    Private(
        "transformers:PreTrainedModel._keys_to_ignore_on_load_unexpected",
        "no warning of weights that guard a checkpoint",
        "a warning at each load",
    ),
    Private("transformers:PreTrainedModel._hf_peft_config_loaded", "adapters are saved alone", "saving them"),
    Private(
        "transformers.quantizers.base:HfQuantizer._process_model_before_weight_loading",
        "puts the layers in before the weights come",
        "from_pretrained",
    ),
    Private(
        "transformers.quantizers.base:HfQuantizer._process_model_after_weight_loading",
        "makes the model one to train and save",
        "from_pretrained",
    ),
    Private("transformers:Trainer._get_train_sampler", "batches of like length", "distill, in other batches"),
    Private("transformers:Trainer._prepare_inputs", "batches that are held out go to the device", "distill"),
    Private("transformers:Trainer._created_lr_scheduler", "Trainer steps our schedule", "distill's schedule"),
    Private("transformers:Trainer._save_checkpoint", "marks checkpoints that are whole", "resuming"),
    Private("transformers:Trainer._save", "weights that are shared are stored once", "distill's checkpoints"),
    Private("transformers:Trainer._load_from_checkpoint", "the same, read again", "resuming"),
    Private("transformers:Trainer._load_best_model", "the same, at the end", "distill with evaluation"),
)
"""What is read below, or what a class of ours overrides or calls on itself."""

ATEN = (
    "_addmm_activation",
    "_local_scalar_dense",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_to_copy",
)
"""Operations of torch that are so named; programs that it exports are made of them."""

version_of = attrgetter("_version")
"""How often a tensor was written to."""
address_of = attrgetter("_cdata")
"""What tells one storage from another."""
schema_of = attrgetter("_schema")
"""An operation's schema."""
attention_of = attrgetter("_attn_implementation")
"""The name under which transformers knows how a model of this config attends."""
can_set_attention = methodcaller("_can_set_attn_implementation")
"""Whether a model of transformers can attend otherwise."""
unsplit_modules = attrgetter("_no_split_modules")
"""Names of the classes that sharding leaves whole; None for none."""


def build_from_config(cls: type[Any], config: Any, **options: Any) -> Any:
    """A model of transformers with random weights, by an Auto class or one of models."""
    return (cls.from_config if hasattr(cls, "from_config") else cls._from_config)(config, **options)


def ignore_unexpected(model: Any, patterns: set[str]) -> None:
    """Have a model of transformers load without a warning of weights whose names fit these patterns."""
    model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), *patterns}


def holds_adapter(model: Any) -> bool:
    """Whether transformers has put an adapter of PEFT into a model."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def __getattr__(name: str) -> Any:
    found = next((private for private in IMPORTED if private.name == name), None)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pkgutil.resolve_name(found.path)
