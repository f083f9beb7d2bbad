"""Tiny models to measure, and heads that are forced to one column."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

LAYERS, HEADS, WIDTH, VOCABULARY = 6, 2, 16, 64


def tiny_model(layers=LAYERS, seed=0, **changes):
    torch.manual_seed(seed)
    values = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": WIDTH, "n_layer": layers, "n_head": HEADS}
    config = GPT2Config(**{**values, "bos_token_id": 0, "eos_token_id": 0, **changes})
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def collapse_layers(model, layers):
    """
    Force every head of `layers` to look at the first token alone.

    Its position embedding gets a direction of its own that the first norm keeps, every query asks for it, and only the
    first key answers.
    """
    with torch.no_grad():
        embeddings = model.transformer.wpe.weight
        embeddings[:, 0] = 0
        embeddings[0, 0] = 1e4
        model.transformer.wte.weight[:, 0] = 0
        for block in model.transformer.h:
            block.ln_1.weight.fill_(1)
            block.ln_1.bias.zero_()
            for layer in (block.attn.c_proj, block.mlp.c_proj):
                layer.weight[:, 0] = 0
                layer.bias[0] = 0
        width = model.config.n_embd // model.config.n_head
        for layer in layers:
            attention = model.transformer.h[layer].attn.c_attn
            size = model.config.n_embd
            attention.weight[:, : 2 * size] = 0
            attention.bias[: 2 * size] = 0
            attention.bias[:size:width] = 50.0  # every query
            attention.weight[0, size : 2 * size : width] = 50.0  # the key of the one token with that direction
    return model
