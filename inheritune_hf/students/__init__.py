"""Students: ordinary Transformers models that hold some of a reference's layers."""

from typing import TYPE_CHECKING

from ..exports import lazy_exports

if TYPE_CHECKING:
    from .architectures import (
        SUPPORTED_MODEL_TYPES,
        cuttable_order,
        find_blocks,
        inspect_architecture,
        is_cuttable,
        logit_shaping,
        sliced_config,
        student_skeleton,
    )
    from .checkpoints import Source, find_weights
    from .estimates import (
        KNOWN_OPTIMIZERS,
        MemoryEstimate,
        RunEstimate,
        StepTime,
        TrainingSetup,
        estimate_run,
        measure_step,
    )
    from .inherit import DEFAULT_SEED, InheritedGPT2, InheritedModelForCausalLM, from_pretrained_inherited
    from .inspection import InheritancePlan, plan_inheritance
    from .reference import NoTokenizer, OpenedReference, Reference, load_tokenizer, open_reference
    from .verification import Verification, verify_student
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "DEFAULT_SEED",
    "KNOWN_OPTIMIZERS",
    "SUPPORTED_MODEL_TYPES",
    "InheritancePlan",
    "InheritedGPT2",
    "InheritedModelForCausalLM",
    "MemoryEstimate",
    "NoTokenizer",
    "OpenedReference",
    "Reference",
    "RunEstimate",
    "Source",
    "StepTime",
    "TrainingSetup",
    "Verification",
    "cuttable_order",
    "estimate_run",
    "find_blocks",
    "find_weights",
    "from_pretrained_inherited",
    "inspect_architecture",
    "is_cuttable",
    "load_tokenizer",
    "logit_shaping",
    "measure_step",
    "open_reference",
    "plan_inheritance",
    "sliced_config",
    "student_skeleton",
    "verify_student",
]
