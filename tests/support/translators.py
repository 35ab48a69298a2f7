"""A tiny random translator and what it translates."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from support.models import sentences

LENGTHS = [14, 9, 20, 3]


SOURCE = sentences(LENGTHS)


TARGETS = torch.randint(5, 120, (4, 6), generator=torch.Generator().manual_seed(1))


def translator(family="marian", seed=0):
    """A random model with attention peaky enough that tokens differ."""
    torch.manual_seed(seed)
    common = {"vocab_size": 120, "d_model": 32, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    if family == "marian":
        sizes = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 3), ("ffn_dim", 64))}
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
        config = AutoConfig.for_model("marian", max_position_embeddings=80, **common, **sizes, **heads)
    else:
        config = AutoConfig.for_model("t5", num_layers=3, num_heads=4, d_kv=8, d_ff=64, **common)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return model
