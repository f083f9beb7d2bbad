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
from .inherit import DEFAULT_SEED, InheritedGPT2, InheritedModelForCausalLM, from_pretrained_inherited
from .inspection import InheritancePlan, plan_inheritance
from .references import Reference, load_reference_config
from .selection import describe, is_prefix, resolve_layers
from .tensors import Unread

__all__ = [
    "DEFAULT_SEED",
    "SUPPORTED_MODEL_TYPES",
    "Architecture",
    "InheritancePlan",
    "InheritedGPT2",
    "InheritedModelForCausalLM",
    "Reference",
    "Source",
    "Unread",
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
