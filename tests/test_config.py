"""The recipe: checked values, and files with strict keys."""

import dataclasses
import json

import pytest

from inheritune_hf import DataConfig, InherituneConfig
from inheritune_hf.config import CompareConfig, RunConfig, read_mapping


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grow_by": 0}, "grow_by must be a whole number of 1 or more, got 0"),
        ({"grow_by": True}, "grow_by must be a whole number of 1 or more, got True"),
        ({"max_layers": 1.5}, "max_layers must be a whole number"),
        ({"steps_per_round": -3}, "steps_per_round must be a whole number of 1 or more, got -3"),
        ({"data_order": "shuffle"}, "data_order must be one of 'restart', 'continue', got 'shuffle'"),
        ({"growth": "stack"}, "growth must be one of 'reinherit', 'continue', got 'stack'"),
        ({"new_blocks": "identity"}, "new_blocks='identity' needs growth 'continue'"),
        ({"target": "best"}, "target must be 'reference' or a number above 0 in nats per token, got 'best'"),
        ({"target": -1.0}, "target must be 'reference' or a number above 0 in nats per token, got -1.0"),
        ({"target": None}, "target must be 'reference' or a number above 0 in nats per token, got None"),
        ({"target": True}, "target must be 'reference' or a number above 0 in nats per token, got True"),
        ({"tolerance": "much"}, "tolerance must be 0 nats per token or more, got 'much'"),
        ({"confidence": "high"}, r"confidence must be in \[0.5, 1\), or none to compare means, got 'high'"),
        ({"tolerance": -0.1}, "tolerance must be 0 nats per token or more, got -0.1"),
        ({"tolerance": float("nan")}, "tolerance must be 0 nats per token or more, got nan"),
        ({"distillation_temperature": "hot"}, "distillation_temperature must be a finite number, got 'hot'"),
        ({"schedule": 4}, "schedule must be a list of what keep_layers may be, got 4"),
        ({"abandon": 1.0}, r"abandon must be in \[0.5, 1\), or none to train every round to its end, got 1.0"),
        ({"confidence": 1.0}, r"confidence must be in \[0.5, 1\), or none to compare means, got 1.0"),
    ],
)
def test_recipe_refuses_values(values, message):
    """A value that cannot be used says what came and what is allowed."""
    with pytest.raises(ValueError, match=message):
        InherituneConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"selection_fraction": 0.5}, "selection_fraction must be above 0 and below 0.5, got 0.5"),
        ({"test_fraction": 0}, "test_fraction must be above 0 and below 0.5, got 0"),
        ({"block_size": 1}, "block_size must be a whole number of 2 or more, got 1"),
        ({"preprocessing_workers": 0}, "preprocessing_workers must be a whole number of 1 or more"),
        ({"dataset_name": "a", "train_files": ["b"]}, "Give dataset_name or train_files, not both"),
        ({"sources": [{}], "train_files": ["b"]}, "Give sources, or dataset_name or train_files, not both"),
        ({"rows": "pages"}, "rows must be one of 'text', 'tokens', 'messages', got 'pages'"),
        ({"chat_loss": "user"}, "chat_loss must be one of 'all', 'assistant', got 'user'"),
        ({"chat_loss": "assistant"}, "chat_loss is about rows of messages; set rows to 'messages'"),
        ({"damaged_rows": "drop"}, "damaged_rows must be one of 'error', 'skip', got 'drop'"),
        ({"token_dtype": "int8"}, "token_dtype must be one of 'uint16', 'uint32', got 'int8'"),
        ({"duplicates": "keep"}, "duplicates must be one of 'report', 'remove', got 'keep'"),
        ({"near_duplicates": "keep"}, "near_duplicates must be one of 'ignore', 'report', 'remove', got 'keep'"),
        ({"near_duplicate_threshold": 0}, "near_duplicate_threshold must be above 0 and at most 1, got 0"),
        ({"shuffle_documents": -1}, "shuffle_documents must be a whole number of 0 or more, got -1"),
        ({"streaming": "yes"}, "streaming must be true or false, got 'yes'"),
        ({"train_files": [1]}, r"train_files\[0\] must be text, got 1"),
        ({"max_document_bytes": 0}, "max_document_bytes must be a whole number of 1 or more, got 0"),
    ],
)
def test_data_settings_refuse_values(values, message):
    """A value that cannot be used says what came and what is allowed."""
    with pytest.raises(ValueError, match=message):
        DataConfig(**values)


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_recipe_goes_through_files(tmp_path, ending):
    """What `to_dict` returns, a file holds and `from_file` reads."""
    recipe = InherituneConfig(keep_layers=[0, 1, 2], steps_per_round=5, target=2.5, confidence=None)
    path = tmp_path / f"recipe.{ending}"
    path.write_text(json.dumps(recipe.to_dict()))
    assert InherituneConfig.from_file(path) == recipe
    assert InherituneConfig.from_dict(recipe.to_dict()) == recipe


def test_numbers_may_come_as_text():
    """YAML reads 1e-2 as a word, and 'none' is how the help says None."""
    recipe = InherituneConfig(target="2.85", tolerance="1e-2", confidence="none")
    assert (recipe.target, recipe.tolerance, recipe.confidence) == (2.85, 0.01, None)
    assert InherituneConfig(confidence="0.9").confidence == 0.9


def test_unknown_keys_are_refused_with_the_nearest():
    """A misspelt key is an error that names the key that may be meant."""
    with pytest.raises(ValueError, match=r"InherituneConfig has no setting named 'grow_bye' \(did you mean 'grow_by'"):
        InherituneConfig.from_dict({"grow_bye": 2})
    with pytest.raises(ValueError, match=r"DataConfig has no setting named 'xyz'\."):
        DataConfig.from_dict({"xyz": 2})


def test_empty_file_is_an_empty_mapping(tmp_path):
    """A file of comments alone sets nothing; JSON that is damaged is named."""
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert read_mapping(tmp_path / "a.yaml") == {}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_mapping(tmp_path / "a.json")


def test_a_recipe_names_no_kernel_of_the_hub():
    """A kernel is code of a repository; the attentions of Transformers are names."""
    with pytest.raises(ValueError, match="such as 'sdpa', got 'someone/kernel': a kernel of the Hub is code"):
        RunConfig(attn_implementation="someone/kernel")
    assert RunConfig(attn_implementation="flash_attention_2").where == {"attn_implementation": "flash_attention_2"}


@pytest.mark.parametrize("config", [InherituneConfig, DataConfig, RunConfig, CompareConfig])
def test_docstrings_have_every_setting(config):
    """The class's docstring, which editors and notebooks show, holds each setting's type, default and help text."""
    shown = " ".join(config.__doc__.split())
    for item in dataclasses.fields(config):
        default = getattr(config(), item.name)
        assert f" {item.name} (`" in shown
        assert f"*optional*, defaults to `{default!r}`): {' '.join(item.metadata['help'].split())}" in shown
    assert shown.index(" Args: ") < shown.index(" Raises: ")
