"""Students: ordinary Transformers models that hold some of a reference's layers."""

from .architectures import (
    SUPPORTED_MODEL_TYPES,
    Architecture,
    inspect_architecture,
    kept_names,
    sliced_config,
    student_skeleton,
)
from .checkpoints import Source, Weights, find_weights, open_tensors
from .inherit import (
    InheritancePlan,
    InheritedGPT2,
    InheritedModelForCausalLM,
    Reference,
    from_pretrained_inherited,
    load_reference_config,
    plan_inheritance,
)
from .selection import describe, is_prefix, resolve_layers

__all__ = [
    "SUPPORTED_MODEL_TYPES",
    "Architecture",
    "InheritancePlan",
    "InheritedGPT2",
    "InheritedModelForCausalLM",
    "Reference",
    "Source",
    "Weights",
    "describe",
    "find_weights",
    "from_pretrained_inherited",
    "inspect_architecture",
    "is_prefix",
    "kept_names",
    "load_reference_config",
    "open_tensors",
    "plan_inheritance",
    "resolve_layers",
    "sliced_config",
    "student_skeleton",
]
