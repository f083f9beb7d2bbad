"""The page of architectures says what the code says."""

from pathlib import Path

import inheritune_hf
from inheritune_hf.students import SUPPORTED_MODEL_TYPES, config_fields

PAGE = Path(inheritune_hf.__file__).parents[1] / "docs" / "reference" / "architectures.md"


def rows(heading):
    """First cells of the table under a heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [line.split("|")[1].strip().strip("`") for line in lines]


def test_every_supported_type_is_on_the_page():
    """The page lists exactly the supported model types, in order."""
    assert rows("Supported") == list(SUPPORTED_MODEL_TYPES)


def test_every_field_that_depends_on_depth_is_on_the_page():
    """The page lists every config field that follows the layers, and every one that stands in the way."""
    fields = {
        *config_fields._PER_LAYER_LISTS,
        *config_fields._INDEX_LISTS,
        *config_fields._THRESHOLDS,
        *config_fields._PERIODS,
        "attention_types",
        "max_window_layers",
        "decoder_sparse_step",
        "scale_attn_by_inverse_layer_idx",
    }
    assert set(rows("Config fields that follow the layers")) == fields
    assert set(rows("What is refused")) == set(config_fields._UNCUTTABLE)
