"""A tiny reference with its tokenizer and students of it, in folders."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from inheritune_hf.publishing import save_inherited

TEXTS = [f"The {thing} of number {number} is {number} and {number}. " * 6 for number in range(20) for thing in "ab"]


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Folders of a reference of 4 layers, a student of 2, one of all 4, and of texts; and the tokenizer."""
    folder = tmp_path_factory.mktemp("pair")
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    core = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", model_max_length=64)
    torch.manual_seed(0)
    last = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=4, n_head=2, bos_token_id=last, eos_token_id=last
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "reference")
    tokenizer.save_pretrained(folder / "reference")
    save_inherited(str(folder / "reference"), 2, folder / "student")
    save_inherited(str(folder / "reference"), 4, folder / "whole")
    (folder / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (folder / "texts" / f"{number:02d}.txt").write_text(text)
    return SimpleNamespace(
        reference=str(folder / "reference"),
        student=str(folder / "student"),
        whole=str(folder / "whole"),
        texts=str(folder / "texts" / "*.txt"),
        tokenizer=tokenizer,
    )
