"""Generated data and random models, so that every path of the code can be tested without a download.

A sentence is filler words and a few marker words; only the markers tell the label. So there is something to learn, and
something to prune.
"""

from __future__ import annotations

import json
import os
import shutil
import string
from pathlib import Path
from random import Random
from typing import Any

from prunekit.data.reading import Rows, TaskRows
from prunekit.data.spans import Answer
from prunekit.data.spec import TaskSpec

TINY_VERSION = 1  # of the folder that `build_tiny_backbone` writes: raise it when its content changes
SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su")
FILLERS = tuple(first + second for first in SYLLABLES for second in SYLLABLES[:4])
MARKERS = tuple(first + second + "x" for first in SYLLABLES for second in SYLLABLES[4:8])
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TINY = {"layers": 4, "hidden": 32, "heads": 4, "ffn": 64}
TRANSLATORS = ("marian", "t5")
DECODERS = ("llama", "mistral", "qwen2", "gpt2", "opt")
POSITIONS = 514
SCORES = 6  # regression labels are 0.0 .. 5.0


def synthetic_task(spec: TaskSpec) -> TaskRows:
    """Rows of the spec's shape: its splits, its classes or scores, one text or two. The same for every seed of a run.

    Training gets `synthetic_rows` rows, every other split half as many. A sentence holds two to four markers, all of
    its class or score; with two texts they are in the second. Where answers are found, a question holds one marker,
    and the answer is the run of markers of its kind in the context. A translation says word by word what its source
    says.
    """
    rows = spec.synthetic_rows or 256
    names = spec.labels or (("0", "1") if spec.kind == "classification" else None)
    extra = list(spec.validation_splits[1:])
    splits = ["train", "validation", *extra, *(["test"] if spec.test_split or spec.test_fraction else [])]
    made = {}
    for split in splits:
        count = rows if split == "train" else max(rows // 2, 1)
        random = Random(f"{split} {spec.kind} {names}")
        if spec.kind == "span":
            made[split] = _questions(random, count, spec.unanswerable)
        elif spec.kind == "translation":
            made[split] = _pairs(random, count)
        else:
            made[split] = _rows(random, count, names, spec.text_pair is not None)
    return TaskRows(made, names)


def _rows(random: Random, count: int, names: tuple[str, ...] | None, pair: bool) -> Rows:
    texts, pairs, labels = [], [], []
    for row in range(count):
        label = row % (len(names) if names else SCORES)
        own = MARKERS[label * 2 % len(MARKERS) : label * 2 % len(MARKERS) + 2]
        markers = [random.choice(own) for _ in range(random.randint(2, 4))]
        texts.append(_sentence(random, [] if pair else markers))
        pairs.append(_sentence(random, markers))
        labels.append(label)
    order = random.sample(range(count), count)
    numbers: list[Any] = [float(label) if names is None else label for label in labels]
    return Rows(texts, pairs if pair else None, numbers).take(order)


def _questions(random: Random, count: int, unanswerable: bool) -> Rows:
    """Contexts with one or two markers of one kind, and of another kind that is not asked for; a third has no answer
    where that is allowed."""
    questions, contexts, answers = [], [], []
    kinds = len(MARKERS) // 2
    for row in range(count):
        asked, other, absent = random.sample(range(kinds), 3)
        words = [random.choice(FILLERS) for _ in range(random.randint(8, 24))]
        runs = {
            kind: [random.choice(MARKERS[2 * kind : 2 * kind + 2]) for _ in range(random.randint(1, 2))]
            for kind in (asked, other)
        }
        for run in runs.values():
            place = random.randint(0, len(words))
            words[place:place] = [" ".join(run)]
        text = " ".join(runs[asked])
        none = unanswerable and row % 3 == 0
        questions.append(f"{random.choice(FILLERS)} {MARKERS[2 * (absent if none else asked)]}")
        contexts.append(" ".join(words))
        start = sum(len(word) + 1 for word in words[: words.index(text)])
        answers.append(Answer() if none else Answer((text,), (start,)))
    places = [f"generated row {row + 1}" for row in range(count)]
    return Rows(questions, contexts, answers, places, [str(row + 1) for row in range(count)])


def _pairs(random: Random, count: int) -> Rows:
    """Sentences and their translations: the word for a filler is that of its syllables in reverse, markers stay."""
    sources = [_sentence(random, random.sample(MARKERS, random.randint(1, 3))) for _ in range(count)]
    return Rows(sources, None, [" ".join(_translated(word) for word in source.split()) for source in sources])


def _translated(word: str) -> str:
    turned = word[2:] + word[:2]
    return turned if turned in FILLERS else word


def _sentence(random: Random, markers: list[str]) -> str:
    words = [random.choice(FILLERS) for _ in range(random.randint(4, 16))] + markers
    random.shuffle(words)
    return " ".join(words)


def tiny_vocabulary() -> dict[str, int]:
    """WordPiece entries: specials, the generator's words, and characters, so that real text is spelt out."""
    characters = string.ascii_lowercase + string.digits
    pieces = [*characters, *(f"##{c}" for c in characters), *string.punctuation]
    return {piece: number for number, piece in enumerate([*SPECIALS, *FILLERS, *MARKERS, *pieces])}


def build_tiny_backbone(folder: Path, family: str = "bert", seed: int = 0) -> None:
    """Writes a random model of 4 layers x 32 and its tokenizer as a Hugging Face folder; whole or not at all.

    `family` is bert, roberta, electra or distilbert, or one of `DECODERS` or `TRANSLATORS`. The global generators are
    not touched.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    sizes = {
        "hidden_size": TINY["hidden"],
        "num_hidden_layers": TINY["layers"],
        "num_attention_heads": TINY["heads"],
        "intermediate_size": TINY["ffn"],
    }
    if family == "distilbert":
        sizes = dict(zip(("dim", "n_layers", "n_heads", "hidden_dim"), sizes.values(), strict=True))
    if family == "electra":
        sizes["embedding_size"] = TINY["hidden"] // 2
    if family in ("llama", "mistral", "qwen2"):
        sizes["num_key_value_heads"] = TINY["heads"] // 2
    if family == "opt":
        sizes["ffn_dim"] = sizes.pop("intermediate_size")
        sizes["word_embed_proj_dim"] = TINY["hidden"]
    spread: dict[str, Any] = {"initializer_range": 0.2}  # the usual 0.02 makes all tokens of so small a model alike
    if family in TRANSLATORS:
        sizes, spread = _translator_sizes(family)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tiny_vocabulary()),
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        **spread,
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
        model.save_pretrained(scratch)  # knows which weights are tied
    else:
        save_file(model.state_dict(), scratch / "model.safetensors", {"format": "pt"})
    around = "" if family in DECODERS else "$A [SEP]" if family in TRANSLATORS else "[CLS] $A [SEP]"
    _tiny_tokenizer(scratch, segments=family in ("bert", "electra"), around=around)
    try:
        scratch.replace(folder)
    except OSError:
        # another process was faster
        shutil.rmtree(scratch)


def _translator_sizes(family: str) -> tuple[dict[str, int], dict[str, Any]]:
    """Encoder and decoder of the same size, and how wide their weights are drawn."""
    common = {"d_model": TINY["hidden"], "decoder_start_token_id": 0}
    if family == "t5":
        sizes = {"num_layers": TINY["layers"], "num_heads": TINY["heads"], "d_ff": TINY["ffn"]}
        return common | sizes | {"d_kv": TINY["hidden"] // TINY["heads"]}, {"initializer_factor": 1.0}
    parts = ("encoder", "decoder")
    sizes = {f"{part}_layers": TINY["layers"] for part in parts} | {f"{part}_ffn_dim": TINY["ffn"] for part in parts}
    return common | sizes | {f"{part}_attention_heads": TINY["heads"] for part in parts}, {"init_std": 0.2}


def _tiny_tokenizer(folder: Path, segments: bool, around: str) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

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
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
