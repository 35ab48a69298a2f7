"""Random decoders of 3 blocks x 32, for equalities: with grouped queries, and GPT-2's transposed weights."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prunekit.weights.streaming import Sample

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "opt")


def tiny_decoder(family="llama", seed=0, **changes):
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 64, "n_positions": 64}
    elif family == "opt":
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        }
    else:
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
        }
        if family == "qwen3":
            sizes["head_dim"] = 8
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, vocab_size=64, **sizes, **special, **changes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()


def texts(lengths=(12, 7, 20), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [Sample(torch.randint(2, 64, (length,), generator=generator)) for length in lengths]
