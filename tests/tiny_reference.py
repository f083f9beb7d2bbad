"""A tiny GPT-2 with a byte-level tokenizer, in a folder."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"


def save_tokenizer(folder):
    """Save a tokenizer of the 256 bytes and an end-of-text token."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), END]
    core = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END).save_pretrained(folder)


def save_model(folder, vocabulary=64, positions=32, width=16, layers=4, **options):
    """Save a GPT-2 with random weights; `options` are for `save_pretrained`."""
    torch.manual_seed(0)
    shape = {"vocab_size": vocabulary, "n_positions": positions, "n_embd": width, "n_layer": layers, "n_head": 2}
    end = vocabulary - 1
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=end, eos_token_id=end)).save_pretrained(folder, **options)
    return str(folder)


def save_reference(folder, **shape):
    """Save a model and its tokenizer."""
    save_tokenizer(folder)
    return save_model(folder, vocabulary=257, **shape)
