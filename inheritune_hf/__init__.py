"""Make a big causal language model small with Inheritune: inherit, train, compare, grow, publish (arXiv 2404.08634)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .configuration import DataConfig, InherituneConfig
    from .data import load_data_splits
    from .evaluation import compare_losses
    from .students import InheritedGPT2, InheritedModelForCausalLM, from_pretrained_inherited
    from .training import InherituneTrainer, ReferenceLossStopCallback

# In the order of the recipe. Names are imported when they are first used: importing the package is instant.
_HOME = {
    "InherituneConfig": "configuration",
    "DataConfig": "configuration",
    "from_pretrained_inherited": "students",
    "InheritedGPT2": "students",
    "InheritedModelForCausalLM": "students",
    "load_data_splits": "data",
    "compare_losses": "evaluation",
    "InherituneTrainer": "training",
    "ReferenceLossStopCallback": "training",
}

__all__ = [
    "DataConfig",
    "InheritedGPT2",
    "InheritedModelForCausalLM",
    "InherituneConfig",
    "InherituneTrainer",
    "ReferenceLossStopCallback",
    "compare_losses",
    "from_pretrained_inherited",
    "load_data_splits",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
