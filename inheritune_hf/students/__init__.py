"""Students: ordinary Transformers models that hold some of a reference's layers."""

from typing import TYPE_CHECKING

from ..exports import lazy_exports

if TYPE_CHECKING:
    from .architectures import (
        SUPPORTED_MODEL_TYPES,
        Architecture,
        find_blocks,
        inspect_architecture,
        kept_names,
        logit_shaping,
        sliced_config,
        student_skeleton,
    )
    from .checkpoints import LazyTensor, Source, Weights, find_weights, open_tensors
    from .estimates import (
        KNOWN_OPTIMIZERS,
        MemoryEstimate,
        RoundEstimate,
        RunEstimate,
        StepTime,
        TrainingSetup,
        estimate_run,
        measure_step,
        training_memory,
    )
    from .inherit import DEFAULT_SEED, InheritedGPT2, InheritedModelForCausalLM, from_pretrained_inherited
    from .inspection import FilePlan, InheritancePlan, plan_inheritance
    from .reference import NoTokenizer, OpenedReference, Reference, load_tokenizer, open_reference
    from .verification import Check, Verification, verify_student
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "DEFAULT_SEED",
    "KNOWN_OPTIMIZERS",
    "SUPPORTED_MODEL_TYPES",
    "Architecture",
    "Check",
    "FilePlan",
    "InheritancePlan",
    "InheritedGPT2",
    "InheritedModelForCausalLM",
    "LazyTensor",
    "MemoryEstimate",
    "NoTokenizer",
    "OpenedReference",
    "Reference",
    "RoundEstimate",
    "RunEstimate",
    "Source",
    "StepTime",
    "TrainingSetup",
    "Verification",
    "Weights",
    "estimate_run",
    "find_blocks",
    "find_weights",
    "from_pretrained_inherited",
    "inspect_architecture",
    "kept_names",
    "load_tokenizer",
    "logit_shaping",
    "measure_step",
    "open_reference",
    "open_tensors",
    "plan_inheritance",
    "sliced_config",
    "student_skeleton",
    "training_memory",
    "verify_student",
]
