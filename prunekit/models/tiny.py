"""Tiny random backbones of each family, built on this machine in a second."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from prunekit.data.synthetic import tiny_vocabulary
from prunekit.files import seal_folder
from prunekit.models.sizes import size_names

TINY = {"layers": 4, "hidden": 32, "heads": 4, "ffn": 64}
# how widely weights are drawn; 0.2 elsewhere, because the usual 0.02 makes all tokens of so small a model alike
SPREAD = {"t5": {"initializer_factor": 1.0}, "marian": {"init_std": 0.2}}
TRANSLATORS = ("marian", "t5")
DECODERS = ("llama", "mistral", "qwen2", "gpt2", "opt")
POSITIONS = 514


def build_tiny_backbone(folder: Path, family: str = "bert", seed: int = 0) -> None:
    """Write a random model of 4 layers x 32 and its tokenizer as a Hugging Face folder, whole or not at all.

    `family` is bert, roberta, electra or distilbert, or one of `DECODERS` or `TRANSLATORS`. The global random
    generators are left unchanged.
    """
    sizes = {name: TINY[size] for size, name in size_names(family)._asdict().items()}
    if family == "electra":
        sizes["embedding_size"] = TINY["hidden"] // 2
    if family in ("llama", "mistral", "qwen2"):
        sizes["num_key_value_heads"] = TINY["heads"] // 2
    if family == "opt":
        sizes["ffn_dim"] = sizes.pop("intermediate_size")
        sizes["word_embed_proj_dim"] = TINY["hidden"]
    if family == "t5":
        sizes["d_kv"] = TINY["hidden"] // TINY["heads"]
    if family == "marian":
        sizes |= {name.replace("encoder", "decoder"): size for name, size in sizes.items()}
    if family in TRANSLATORS:
        sizes["decoder_start_token_id"] = 0
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tiny_vocabulary()),
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **SPREAD.get(family, {"initializer_range": 0.2}),
        **sizes,
    )
    scratch = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = AutoModelForCausalLM if family in DECODERS else AutoModel
        kind = AutoModelForSeq2SeqLM if family in TRANSLATORS else kind
        model = kind.from_config(config, dtype=torch.float32)
    config.architectures = [type(model).__name__]
    config.save_pretrained(scratch)
    if family in DECODERS + TRANSLATORS:
        model.save_pretrained(scratch)  # leaves out copies of tied weights
    else:
        save_file(model.state_dict(), scratch / "model.safetensors", {"format": "pt"})
    around = "" if family in DECODERS else "$A [SEP]" if family in TRANSLATORS else "[CLS] $A [SEP]"
    ends = {"eos_token": "[SEP]"} if family == "qwen2" else {}  # its tokenizer adds a token of its own without one
    _tiny_tokenizer(scratch, segments=family in ("bert", "electra"), around=around, further=ends)
    seal_folder(scratch)
    try:
        scratch.replace(folder)
    except OSError:
        shutil.rmtree(scratch)  # another process was faster, and wrote the same


def _tiny_tokenizer(folder: Path, segments: bool, around: str, further: dict[str, str]) -> None:
    vocabulary = tiny_vocabulary()
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=around,
            pair=f"{around} $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    inputs = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": POSITIONS - 2,
        "model_input_names": inputs,
        **{f"{name}_token": token for name, token in names.items()},
        **further,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
