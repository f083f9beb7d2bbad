"""Make a big causal language model small with Inheritune: inherit, train, compare, grow, publish (arXiv 2404.08634)."""

from typing import TYPE_CHECKING

from .exports import lazy_exports

__version__ = "0.1.0"

# In the order of the recipe. Names are imported when they are first used: importing the package is instant.
if TYPE_CHECKING:
    from .config import DataConfig, InherituneConfig
    from .data import load_data_splits
    from .evaluation import compare_losses
    from .students import InheritedGPT2, InheritedModelForCausalLM, from_pretrained_inherited
    from .training import InherituneTrainer, ReferenceLossStopCallback
else:
    __getattr__, __dir__ = lazy_exports(__name__)

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
