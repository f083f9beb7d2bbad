"""Text into sequences: where documents come from, how they are packed, and the three disjoint sets."""

from .corpora import Document, split_standard_library, standard_library_documents
from .packing import CausalCollator, check_tokenizer, set_fingerprint
from .splits import DataFacts, DataSplits, SetFacts, load_data_splits, splits_from_documents

__all__ = [
    "CausalCollator",
    "DataFacts",
    "DataSplits",
    "Document",
    "SetFacts",
    "check_tokenizer",
    "load_data_splits",
    "set_fingerprint",
    "split_standard_library",
    "splits_from_documents",
    "standard_library_documents",
]
