"""Every supported family: small configs, and what its published files look like where they are not as a model saves."""

from dataclasses import dataclass, field

import torch

SHAPE = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 6}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
WIDE = {**SHAPE, **TOKENS, "intermediate_size": 32, "max_position_embeddings": 32}
GROUPED = {**WIDE, "num_key_value_heads": 1}
EQUAL = {**WIDE, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
SLIDING = ["sliding_attention", "full_attention"] * 3
WINDOWS = {"layer_types": SLIDING, "sliding_window": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 2,
    "num_nextn_predict_layers": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
MPT = {"vocab_size": 64, "d_model": 16, "n_heads": 2, "n_layers": 6, "max_seq_len": 32, **TOKENS}
OPT = {**SHAPE, **TOKENS, "ffn_dim": 32, "max_position_embeddings": 32}
# Sizes that its config checks; in torch alone sequences are padded to whole chunks, which takes longest.
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_expand": 2, "mamba_chunk_size": 8}
CONVOLUTIONS = {"layer_types": ["conv", "full_attention", "conv"] * 2}
HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"] * 2}
DELTA = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
DENSE_FIRST = {"mlp_layer_types": ["dense"] * 2 + ["sparse"] * 4}
SPARSE = {name: value for name, value in ROUTED.items() if name != "first_k_dense_replace"}
INDEXED = {"index_topk": 32, "index_head_dim": 8, "index_n_heads": 2}
STATE_SPACE = {"vocab_size": 64, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 6, **TOKENS}
# Gemma 4 ends with full attention, and so does every choice of the tests.
ENDS_FULL = {"layer_types": [SLIDING[number] for number in (0, 0, 1, 0, 1, 1)], "sliding_window": 4}

#: The families that the project promises; their tests are the fast ones.
PROMISED = {
    "gpt2": [
        dict(SHAPE, n_positions=32, **TOKENS),
        dict(SHAPE, n_positions=32, reorder_and_upcast_attn=True, **TOKENS),
    ],
    "bloom": [{**SHAPE, **TOKENS}],
    "cohere": [{**EQUAL, "use_qk_norm": True}],
    "exaone4": [{**GROUPED, **WINDOWS}],
    "falcon": [
        {**SHAPE, **TOKENS, "alibi": True, "new_decoder_architecture": False},
        {**SHAPE, **TOKENS, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 1},
    ],
    "gemma": [HEADS],
    "gemma2": [{**HEADS, **WINDOWS}],
    "gemma3_text": [{**HEADS, **WINDOWS}],
    "gpt_bigcode": [dict(SHAPE, n_positions=32, **TOKENS)],
    "gpt_neo": [
        {
            **SHAPE,
            **TOKENS,
            "max_position_embeddings": 32,
            "window_size": 4,
            "attention_types": [[["global", "local"], 2], [["global"], 2]],
        }
    ],
    "gpt_neox": [WIDE, {**WIDE, "use_parallel_residual": False, "tie_word_embeddings": True}],
    "gptj": [dict(SHAPE, n_positions=32, rotary_dim=4, **TOKENS)],
    "granite": [{**GROUPED, "logits_scaling": 2.0, "residual_multiplier": 0.5}],
    "lfm2": [{**GROUPED, **CONVOLUTIONS, "block_auto_adjust_ff_dim": False}],
    "llama": [GROUPED, {**GROUPED, "tie_word_embeddings": True, "attention_bias": True}],
    "ministral": [{**HEADS, **WINDOWS}],
    "mistral": [{**HEADS, "sliding_window": 4}],
    "mixtral": [{**GROUPED, **LOCAL_EXPERTS}],
    "mpt": [MPT],
    "olmo": [GROUPED],
    "olmo2": [GROUPED],
    "opt": [OPT, {**OPT, "word_embed_proj_dim": 8, "do_layer_norm_before": False}],
    "phi": [GROUPED],
    "phi3": [{**GROUPED, "sliding_window": 4}],
    "qwen2": [GROUPED, {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}],
    "qwen2_moe": [{**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 8, "decoder_sparse_step": 2}],
    "qwen3": [HEADS, {**HEADS, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}],
    "qwen3_moe": [{**HEADS, **EXPERTS, "mlp_only_layers": [1, 5]}],
    "smollm3": [
        {**GROUPED, "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 4},
        {**GROUPED, "no_rope_layers": [1, 0, 0, 1, 0, 1]},
    ],
    "stablelm": [GROUPED],
    "starcoder2": [{**GROUPED, "sliding_window": 4}],
}

#: What the mechanism serves besides; proven the same way, in the slow tests.
BESIDES = {
    "afmoe": [{**HEADS, **EXPERTS, "num_dense_layers": 2, "global_attn_every_n_layers": 3, "sliding_window": 4}],
    "apertus": [GROUPED],
    "arcee": [GROUPED],
    "axk1": [{**EQUAL, **SPARSE, **LATENT, **DENSE_FIRST}],
    "axk2": [{**EQUAL, **SPARSE, **LATENT, **DENSE_FIRST, **INDEXED, "head_dim": 4, "gated_norm_rank": 4}],
    "bailing_hybrid": [
        {
            **EQUAL,
            **LATENT,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "layer_group_size": 3,
            "n_group": 1,
            "topk_group": 1,
            "head_dim": 8,
            **HYBRID,
        }
    ],
    "bamba": [{**HEADS, **MAMBA, "attn_layer_indices": [1, 4]}],
    "biogpt": [WIDE],
    "codegen": [{**SHAPE, **TOKENS, "n_positions": 32, "n_ctx": 32, "rotary_dim": 4, "num_attention_heads": 4}],
    "cohere2": [{**EQUAL, **WINDOWS}],
    "cohere2_moe": [
        {
            **HEADS,
            **WINDOWS,
            **DENSE_FIRST,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "prefix_dense_intermediate_size": 8,
        }
    ],
    "cwm": [{**HEADS, **WINDOWS}],
    "deepseek_v2": [{**EQUAL, **ROUTED, **LATENT}],
    "deepseek_v3": [{**EQUAL, **ROUTED, **LATENT}],
    "deepseek_v32": [{**EQUAL, **SPARSE, **LATENT, **DENSE_FIRST, **INDEXED}],
    "doge": [HEADS],
    "dots1": [{**HEADS, **ROUTED, **WINDOWS, "n_shared_experts": 1, "max_window_layers": 6}],
    "ernie4_5": [HEADS],
    "ernie4_5_moe": [
        {**HEADS, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 8, "moe_num_shared_experts": 1}
    ],
    "exaone_moe": [{**HEADS, **EXPERTS, "first_k_dense_replace": 1, "sliding_window": 4, "sliding_window_pattern": 3}],
    "falcon_h1": [{**HEADS, **MAMBA, "mamba_d_ssm": 32, "lm_head_multiplier": 0.5}],
    "falcon_mamba": [STATE_SPACE],
    "flex_olmo": [{**EQUAL, **EXPERTS}],
    "flint": [
        {**HEADS, **EXPERTS, **WINDOWS, "shared_expert_intermediate_size": 8, "mlp_only_layers": [0]},
        {
            **HEADS,
            **EXPERTS,
            **WINDOWS,
            "shared_expert_intermediate_size": 8,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [],
        },
    ],
    "gemma4_text": [
        {
            **HEADS,
            **ENDS_FULL,
            "hidden_size_per_layer_input": 0,
            "global_head_dim": 16,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "final_logit_softcapping": 30.0,
        },
        {
            **HEADS,
            **ENDS_FULL,
            "hidden_size_per_layer_input": 0,
            "global_head_dim": 8,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 8,
        },
    ],
    "gemma4_unified_text": [{**HEADS, **ENDS_FULL, "global_head_dim": 16}],
    "glm": [HEADS],
    "glm4": [HEADS],
    "glm4_moe": [{**EQUAL, **ROUTED, "head_dim": 8}],
    "glm4_moe_lite": [{**EQUAL, **SPARSE, **LATENT, **DENSE_FIRST}],
    "glm_moe_dsa": [
        {
            **EQUAL,
            **SPARSE,
            **LATENT,
            **DENSE_FIRST,
            **INDEXED,
            "indexer_types": ["full", "shared", "full", "full", "full", "shared"],
        }
    ],
    "gpt_oss": [{**HEADS, **LOCAL_EXPERTS, **WINDOWS}],
    "granite_swa": [{**GROUPED, **WINDOWS}],
    "granitemoe": [{**GROUPED, **LOCAL_EXPERTS}],
    "granitemoehybrid": [
        {
            **GROUPED,
            **MAMBA,
            **experts,
            "layer_types": ["attention"] * 6,
            "shared_intermediate_size": 8,
            "logits_scaling": 2.0,
        }
        for experts in ({"num_local_experts": 0, "num_experts_per_tok": 0}, LOCAL_EXPERTS)
    ]
    + [
        {
            **GROUPED,
            **MAMBA,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "layer_types": ["mamba", "attention", "mamba"] * 2,
            "shared_intermediate_size": 8,
        }
    ],
    "granitemoe_swa": [{**GROUPED, **LOCAL_EXPERTS, **WINDOWS, "layer_rope_theta": [1e4, 0, 1e4, 1e3, 0, 1e4]}],
    "granitemoeshared": [{**GROUPED, **LOCAL_EXPERTS, "shared_intermediate_size": 8}],
    "helium": [HEADS],
    "hunyuan_v1_dense": [HEADS],
    "hunyuan_v1_moe": [{**HEADS, "num_experts": 4, "moe_topk": [2, 2, 1, 2, 2, 1], "num_shared_expert": [1] * 6}],
    "hy_v3": [{**HEADS, **DENSE_FIRST, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}],
    "hyperclovax": [GROUPED],
    "internlm3": [HEADS],
    "iquestcoder": [HEADS],
    "jais2": [GROUPED],
    "jamba": [{**HEADS, **EXPERTS, "attn_layer_period": 3, "attn_layer_offset": 1, "mamba_d_state": 4}],
    "jetmoe": [{**GROUPED, **LOCAL_EXPERTS, "kv_channels": 8}],
    "kimi_linear": [
        {
            **EQUAL,
            **LATENT,
            "num_experts": 4,
            "num_experts_per_token": 2,
            "moe_intermediate_size": 8,
            "linear_attn_config": {
                "full_attn_layers": [2, 5],
                "kda_layers": [1, 3, 4, 6],
                "head_dim": 4,
                "num_heads": 2,
                "short_conv_kernel_size": 4,
            },
            "first_k_dense_replace": 1,
        }
    ],
    "kolibri1": [{**HEADS, **EXPERTS, **WINDOWS, "shared_expert_intermediate_size": 8}],
    "laguna": [
        {
            **HEADS,
            **EXPERTS,
            **WINDOWS,
            **DENSE_FIRST,
            "num_attention_heads_per_layer": [2, 2, 4, 2, 4, 2],
            "shared_expert_intermediate_size": 8,
        }
    ],
    "lfm2_moe": [{**GROUPED, **EXPERTS, **CONVOLUTIONS, "num_dense_layers": 2}],
    "lfm3": [{**GROUPED, **CONVOLUTIONS}],
    "llama4_text": [
        {
            **HEADS,
            **LOCAL_EXPERTS,
            "intermediate_size_mlp": 32,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 3,
            "attention_chunk_size": 8,
        }
    ],
    "mamba": [STATE_SPACE],
    "mamba2": [{**STATE_SPACE, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8}],
    "mellum": [{**HEADS, **EXPERTS, **WINDOWS, **DENSE_FIRST}],
    "mimo_v2_flash": [
        {
            **HEADS,
            **SPARSE,
            **DENSE_FIRST,
            **WINDOWS,
            "v_head_dim": 4,
            "hybrid_layer_pattern": [1, 0] * 3,
            "moe_layer_freq": [0, 0, 1, 1, 1, 1],
        }
    ],
    "minicpm3": [{**EQUAL, **LATENT, "dim_model_base": 8}],
    "minimax": [{**HEADS, **LOCAL_EXPERTS, **HYBRID, "block_size": 8}],
    "minimax_m2": [{**HEADS, **LOCAL_EXPERTS, "rotary_dim": 4, "use_mtp": True, "num_mtp_modules": 3}],
    "ministral3": [HEADS],
    "modernbert-decoder": [{**WIDE, "layer_types": SLIDING, "local_attention": 8}],
    "nanochat": [GROUPED],
    "nemotron": [GROUPED],
    "nemotron_h": [
        {
            **{name: value for name, value in HEADS.items() if name != "num_hidden_layers"},
            "hybrid_override_pattern": "M*-E*E",
            "moe_intermediate_size": 8,
            "moe_shared_expert_intermediate_size": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 4,
            "chunk_size": 8,
            "n_groups": 1,
            "num_nextn_predict_layers": 1,
        }
    ],
    "olmo3": [{**GROUPED, **WINDOWS}],
    "olmo_hybrid": [{**GROUPED, **HYBRID}],
    "olmoe": [{**EQUAL, **EXPERTS}],
    "persimmon": [WIDE],
    "phimoe": [{**GROUPED, **LOCAL_EXPERTS}],
    "qwen3_5_moe_text": [{**HEADS, **EXPERTS, **DELTA, **HYBRID, "shared_expert_intermediate_size": 8}],
    "qwen3_5_text": [{**HEADS, **DELTA, **HYBRID, "full_attention_interval": 3, "mtp_num_hidden_layers": 1}],
    "qwen3_next": [
        {
            **HEADS,
            **EXPERTS,
            **DELTA,
            **HYBRID,
            "shared_expert_intermediate_size": 8,
            "full_attention_interval": 3,
            "mlp_only_layers": [1],
        }
    ],
    "seed_oss": [HEADS],
    "solar_open": [{**HEADS, **SPARSE}],
    "vaultgemma": [{**HEADS, **WINDOWS}],
    "xglm": [
        {
            **TOKENS,
            "vocab_size": 64,
            "d_model": 16,
            "attention_heads": 2,
            "num_layers": 6,
            "ffn_dim": 32,
            "max_position_embeddings": 32,
        }
    ],
    "youtu": [{**EQUAL, **LATENT, "pad_token_id": None}],
}

CASES = {**PROMISED, **BESIDES}

#: Of each way in which layers can need others, or have no softmax attention, a family and the number of its config.
NEEDY = [
    ("lfm2", 0),
    ("gemma4_text", 0),
    ("falcon_h1", 0),
    ("glm_moe_dsa", 0),
    ("granitemoehybrid", 2),
    ("jamba", 0),
    ("mamba", 0),
    ("nemotron_h", 0),
    ("olmo_hybrid", 0),
    ("qwen3_5_text", 0),
    ("qwen3_next", 0),
]


@dataclass(frozen=True)
class Published:
    """
    How a family's files differ from what a model saves: a prefix left out, other tensors besides, telling names,
    tensors that are there twice.
    """

    strip: str = ""
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    twins: dict[str, str] = field(default_factory=dict)

    def __call__(self, tensors):
        """Return the tensors as the family publishes them."""
        found = {}
        for name, tensor in tensors.items():
            name = name.removeprefix(self.strip)
            for old, new in self.renamed:
                name = name.replace(old, new)
            found[name] = tensor
        for template, shape in self.extra.items():
            for layer in range(6) if "{}" in template else [0]:
                found[template.format(layer)] = torch.ones(shape)
        found.update({twin: found[name].clone() for twin, name in self.twins.items()})
        assert set(self.names) <= set(found), set(self.names) - set(found)
        return found


MASK = (1, 1, 32, 32)
PREDICTION = {
    "model.layers.6.eh_proj.weight": (16, 32),
    "model.layers.6.input_layernorm.weight": (16,),
    "model.layers.6.mlp.experts.0.gate_proj.weight": (8, 16),
    "model.layers.6.shared_head.head.weight": (64, 16),
}
PUBLISHED = {
    # openai-community/gpt2: no prefix, masks, no head.
    "gpt2": Published("transformer.", {"h.{}.attn.bias": MASK}, ("wte.weight", "h.5.ln_1.bias", "ln_f.weight")),
    # bigscience/bloom-560m: no prefix.
    "bloom": Published("transformer.", names=("word_embeddings_layernorm.weight", "h.0.input_layernorm.weight")),
    # EleutherAI/gpt-neo-125m: masks in every block.
    "gpt_neo": Published(
        "",
        {"transformer.h.{}.attn.attention.bias": MASK, "transformer.h.{}.attn.attention.masked_bias": ()},
        ("transformer.h.3.attn.attention.q_proj.weight",),
    ),
    # EleutherAI/pythia-70m: the head is called embed_out, masks and frequencies in every block.
    "gpt_neox": Published(
        "",
        {
            "gpt_neox.layers.{}.attention.bias": MASK,
            "gpt_neox.layers.{}.attention.masked_bias": (),
            "gpt_neox.layers.{}.attention.rotary_emb.inv_freq": (2,),
        },
        ("gpt_neox.layers.5.attention.query_key_value.weight",),
    ),
    # EleutherAI/gpt-j-6b: masks in every block, a head with a bias.
    "gptj": Published(
        "", {"transformer.h.{}.attn.bias": MASK, "transformer.h.{}.attn.masked_bias": ()}, ("lm_head.bias",)
    ),
    # facebook/opt-125m: no prefix of the bare model, and the tied head beside it.
    "opt": Published(
        "model.",
        names=("decoder.embed_tokens.weight", "decoder.layers.0.fc1.weight"),
        twins={"lm_head.weight": "decoder.embed_tokens.weight"},
    ),
    # meta-llama/Llama-2-7b-hf and its contemporaries: frequencies in every block.
    "llama": Published("", {"model.layers.{}.self_attn.rotary_emb.inv_freq": (4,)}),
    "stablelm": Published("", {"model.layers.{}.self_attn.rotary_emb.inv_freq": (4,)}),
    # microsoft/Phi-3-mini: fused projections.
    "phi3": Published("", names=("model.layers.5.self_attn.qkv_proj.weight", "model.layers.5.mlp.gate_up_proj.weight")),
    # mosaicml/mpt-7b and tiiuae/falcon-7b: fused projections.
    "mpt": Published("", names=("transformer.blocks.5.attn.Wqkv.weight", "transformer.norm_f.weight")),
    "falcon": Published("", names=("transformer.h.5.self_attention.query_key_value.weight",)),
    # One tensor per expert.
    "mixtral": Published(
        "",
        names=(
            "model.layers.5.block_sparse_moe.experts.3.w1.weight",
            "model.layers.0.block_sparse_moe.experts.0.w2.weight",
            "model.layers.0.block_sparse_moe.gate.weight",
        ),
    ),
    "phimoe": Published("", names=("model.layers.5.block_sparse_moe.experts.3.w1.weight",)),
    "qwen2_moe": Published(
        "", names=("model.layers.5.mlp.experts.3.gate_proj.weight", "model.layers.5.mlp.shared_expert.up_proj.weight")
    ),
    "qwen3_moe": Published(
        "", names=("model.layers.4.mlp.experts.3.down_proj.weight", "model.layers.5.mlp.down_proj.weight")
    ),
    "olmoe": Published("", names=("model.layers.5.mlp.experts.3.gate_proj.weight",)),
    "flex_olmo": Published("", names=("model.layers.5.mlp.experts.3.gate_proj.weight",)),
    "deepseek_v2": Published("", names=("model.layers.5.mlp.experts.3.gate_proj.weight",)),
    # deepseek-ai/DeepSeek-V3 and zai-org/GLM-4.5: a layer of multi-token prediction beyond the last one.
    "deepseek_v3": Published("", PREDICTION, names=("model.layers.5.mlp.experts.3.gate_proj.weight",)),
    "glm4_moe": Published("", PREDICTION, names=("model.layers.5.mlp.experts.3.gate_proj.weight",)),
    "lfm2": Published("", names=("model.layers.0.conv.conv.weight", "model.embedding_norm.weight")),
    "codegen": Published("", {"transformer.h.{}.attn.causal_mask": MASK}),
}
