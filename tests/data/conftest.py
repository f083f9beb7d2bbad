"""A small byte-level tokenizer, and caches in a temporary folder."""

from __future__ import annotations

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = "def inherit(layers):\n    return [layer for layer in layers if layer is kept]\n"


@pytest.fixture(autouse=True)
def caches_in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def build_tokenizer():
    def build(end: str | None = "<|endoftext|>", vocab_size: int = 300) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>"],
            show_progress=False,
        )
        tokenizer.train_from_iterator([TEXT], trainer)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)

    return build


@pytest.fixture(scope="session")
def tokenizer(build_tokenizer) -> PreTrainedTokenizerFast:
    return build_tokenizer()
