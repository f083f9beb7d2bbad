"""Text into sequences: where documents come from, how they are packed, and the three disjoint sets."""

from .corpora import Document, split_standard_library, standard_library_documents
from .encoding import check_tokenizer, end_of_text
from .facts import DataFacts, DataSplits, SetFacts, SourceFacts
from .packing import CausalCollator, set_fingerprint
from .preparation import prepare_data
from .splits import load_data_splits, splits_from_documents

__all__ = [
    "CausalCollator",
    "DataFacts",
    "DataSplits",
    "Document",
    "SetFacts",
    "SourceFacts",
    "check_tokenizer",
    "end_of_text",
    "load_data_splits",
    "prepare_data",
    "set_fingerprint",
    "split_standard_library",
    "splits_from_documents",
    "standard_library_documents",
]
