"""Tiny references, written the way real ones are published."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

torch.set_num_threads(1)

DEPTH = 12


def randomize(model):
    """Give every parameter, and every buffer that is saved, other values: no two blocks, norms or biases are alike."""
    generator = torch.Generator().manual_seed(0)
    saved = [buffer for name, buffer in model.named_buffers() if name in model.state_dict()]
    with torch.no_grad():
        for tensor in (*model.parameters(), *filter(torch.is_floating_point, saved)):
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model.eval()


def tiny_gpt2(**changes):
    values = {"n_layer": DEPTH, "n_embd": 16, "n_head": 2, "vocab_size": 64, "n_positions": 32}
    return GPT2Config(**{**values, "bos_token_id": 0, "eos_token_id": 0, **changes})


def published_tensors(model):
    """The model's tensors as GPT-2 is published: no `transformer.` prefix, no tied head, masks in every block."""
    tensors = {
        name.removeprefix("transformer."): tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    positions = model.config.n_positions
    for layer in range(model.config.n_layer):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(positions, positions).tril()[None, None]
    return tensors


def write_checkpoint(folder, config, tensors, layout="safetensors", variant=""):
    """Write config.json and weights; layouts: `safetensors`, `bin`, both also `-sharded`, and `legacy-bin`."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {**config.to_dict(), "architectures": ["GPT2LMHeadModel"]}
    values.pop("dtype", None)  # GPT-2's published config has none
    (folder / "config.json").write_text(json.dumps(values))
    kind = layout.removesuffix("-sharded")
    stem, ending = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")

    def write(part, path):
        if kind == "safetensors":
            save_file(part, path, metadata={"format": "pt"})
        else:
            torch.save(part, path, _use_new_zipfile_serialization=kind == "bin")

    if not layout.endswith("-sharded"):
        write(tensors, folder / f"{stem}{variant}.{ending}")
        return folder
    # One shard per block, and one for the rest: a missing one is then a missing layer.
    shards = {}
    for name, tensor in tensors.items():
        shards.setdefault(name.split(".")[1] if name.startswith("h.") else "rest", {})[name] = tensor
    weight_map = {}
    for shard, part in shards.items():
        file = f"{stem}-{shard}{variant}.{ending}"
        write(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.{ending}.index{variant}.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def reference():
    """A GPT-2 of 12 layers, in evaluation mode. Never changed."""
    return randomize(GPT2LMHeadModel(tiny_gpt2()))


@pytest.fixture(scope="session")
def published(reference, tmp_path_factory):
    """The reference in a folder, one safetensors file in GPT-2's published layout. Never changed."""
    folder = tmp_path_factory.mktemp("references") / "gpt2-tiny"
    write_checkpoint(folder, reference.config, published_tensors(reference))
    GenerationConfig(do_sample=True, temperature=0.7, eos_token_id=5).save_pretrained(folder)
    return folder


@pytest.fixture
def publish(reference, tmp_path):
    """Write the reference into a fresh folder in a given layout; `edit` changes the tensors before."""

    def write(layout="safetensors", edit=None, folder="reference", variant="", model=reference):
        tensors = published_tensors(model)
        if edit is not None:
            edit(tensors)
        return write_checkpoint(tmp_path / folder, model.config, tensors, layout, variant)

    return write


@pytest.fixture
def tokens():
    """Two sequences of 20 tokens, of shape (batch, tokens)."""
    return torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def block_outputs():
    """Run a model and return the hidden states after every block, before the final norm."""

    def run(model, tokens):
        found = []

        def keep(_module, _args, output):
            found.append(output[0] if isinstance(output, tuple) else output)

        depth = model.config.num_hidden_layers
        blocks = next(
            module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == depth
        )
        handles = [block.register_forward_hook(keep) for block in blocks]
        with torch.no_grad():
            model(tokens)
        for handle in handles:
            handle.remove()
        return found

    return run


@pytest.fixture
def skipping():
    """Run a model as if only some layers were there: the others hand on what they get. Returns the logits."""

    def run(model, tokens, layers):
        depth = model.config.num_hidden_layers
        blocks = next(
            module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == depth
        )

        def hand_on(_module, args, kwargs, output):
            given = args[0] if args else kwargs["hidden_states"]
            return (given, *output[1:]) if isinstance(output, tuple) else given

        dropped = [block for layer, block in enumerate(blocks) if layer not in layers]
        handles = [block.register_forward_hook(hand_on, with_kwargs=True) for block in dropped]
        with torch.no_grad():
            logits = model(tokens, use_cache=False).logits
        for handle in handles:
            handle.remove()
        return logits

    return run


@pytest.fixture
def logged():
    """Everything that Transformers and this package log at warning level or above."""
    messages = []

    class Keep(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    handler = Keep(level=logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("transformers", "inheritune_hf")]
    for logger in loggers:
        logger.addHandler(handler)
    yield messages
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture
def build():
    """Build a randomized causal language model of a config."""
    return lambda config: randomize(AutoModelForCausalLM.from_config(config))


@pytest.fixture
def tokenizer():
    """A tokenizer of single bytes."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    core = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
