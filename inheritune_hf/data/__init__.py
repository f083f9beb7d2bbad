"""Read text, tokenize it, pack it into sequences, and split it into disjoint train, selection and test sets."""

from typing import TYPE_CHECKING

from ..exports import lazy_exports

if TYPE_CHECKING:
    from .embedded import embedded_data, embedded_reference
    from .packing import CausalCollator, set_fingerprint
    from .prepared import prepare_data
    from .splits import DataSplits, load_data_splits
    from .tokenization import check_tokenizer, end_of_text
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "CausalCollator",
    "DataSplits",
    "check_tokenizer",
    "embedded_data",
    "embedded_reference",
    "end_of_text",
    "load_data_splits",
    "prepare_data",
    "set_fingerprint",
]
