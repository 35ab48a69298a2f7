"""The model card of a pruned checkpoint: what it costs, how fast it is where it was measured, and how to load it."""

from __future__ import annotations

from prunekit.results.summary import markdown, title, verdicts
from prunekit.runs.result import RunResult


def model_card(
    result: RunResult,
    *,
    base_model: str | None = None,
    labels: list[str] | None = None,
    hardware: str | None = None,
    task_type: str = "text-classification",
    several: bool = False,
    drops_tokens: bool = True,
    longest: int | None = None,
) -> str:
    """Write README.md of the checkpoint's folder, with metadata for the Hugging Face hub; needs no network.

    `base_model` is a hub id, `labels` the class names, `hardware` the machine that speed was measured on, `task_type`
    the hub's name for what the head does, `several` whether a text may have several classes. `drops_tokens` says
    whether the encoder decides on tokens, which transformers alone would not do, and `longest` where texts must be cut.
    """
    # slow to import, and a stored result is printed without it
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    score = result.score
    data = ModelCardData(
        base_model=base_model,
        library_name="transformers",
        pipeline_tag=task_type,
        tags=["prunekit", *["token-pruning"] * drops_tokens, result.method],
        model_name=f"{result.method}-{result.task}-{result.backbone}",
        eval_results=[
            EvalResult(
                task_type=task_type,
                dataset_type=result.task,
                dataset_name=result.task,
                dataset_split=score.split,
                metric_type=name,
                metric_value=round(value, 4),
            )
            for name, value in ({score.metric: score.pruned} | dict(score.pruned_all or {})).items()
        ],
    )
    sections = [
        f"# {title(result)}",
        _summary(result, drops_tokens),
        f"## Measured\n\n{markdown(result)}\n{_measurement(result, hardware)}",
        f"## Use\n\n{_use(result, task_type, several=several, drops_tokens=drops_tokens, longest=longest)}",
        f"## Limits\n\n{_limits(result, labels, drops_tokens)}",
        f"## Made by\n\n```bash\n{result.command}\n```\n\nRun `{result.hash}`.",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))


def _summary(result: RunResult, drops_tokens: bool) -> str:
    flops = result.flops
    if result.is_dense:
        return f"`{result.backbone}` fine-tuned on {result.task}; no token is pruned."
    how = "with tokens removed inside the encoder" if drops_tokens else "made cheaper"
    return (
        f"`{result.backbone}` fine-tuned on {result.task}, {how} by the method `{result.method}`: "
        f"{flops.flops_vs_unpadded:.2f}x fewer FLOPs than the same texts take without "
        f"padding, {flops.flops_vs_padded:.2f}x fewer than padded to {flops.padded_to} tokens."
    )


def _measurement(result: RunResult, hardware: str | None) -> str:
    flops = (
        "FLOPs are two per multiply-accumulate, counted on the tokens that were executed; embeddings, norms, softmax, "
        f"pooler and head are left out. Split: {result.flops.split}."
    )
    if result.flops.of is not None:
        flops += f" They are of the {result.flops.of} alone, and so is the speed."
    if not result.speed:
        return flops
    threads = sorted({row.threads for row in result.speed if row.threads is not None})
    where = f" on {hardware}" if hardware else ""
    count = f", threads: {', '.join(map(str, threads))}" if threads else ""
    return (
        f"{flops}\n\nSpeed: medians of interleaved rounds{where}{count}. Packed means without padding; every ratio is "
        f"dense time over {result.method} time. Another machine, batch size or length gives another ratio."
    )


# what loads the model without prunekit, and how it is called
USES = {
    "text-classification": (
        "SequenceClassification",
        'logits = model(**tokenizer(["a text"], return_tensors="pt")).logits',
    ),
    "sentence-similarity": (None, 'vectors = model.encode(["a text", "another"])  # numpy, one row per text'),
    "question-answering": (
        "QuestionAnswering",
        """output = model(**tokenizer(["a question"], ["a text that answers it"], return_tensors="pt"))
start, end = output.start_logits, output.end_logits""",
    ),
    "token-classification": (
        "TokenClassification",
        """batch = tokenizer([["a", "text", "in", "words"]], is_split_into_words=True, return_tensors="pt")
logits = model(**batch).logits  # of each token; a word's label is that of its first token, see batch.word_ids(0)""",
    ),
    "translation": (
        "Seq2SeqLM",
        """from prunekit.tokens.translation import generate
batch = tokenizer(["a text"], return_tensors="pt")
print(tokenizer.batch_decode(generate(model, **batch, beams=4), skip_special_tokens=True))""",
    ),
}


# of a text with any number of labels
SEVERAL = """probabilities = model(**tokenizer(["a text"], return_tensors="pt")).logits.sigmoid()[0]
thresholds = getattr(model.config, "label_thresholds", [0.5] * len(probabilities))
labels = [model.config.id2label[i] for i, p in enumerate(probabilities.tolist()) if p >= thresholds[i]]"""


def _use(result: RunResult, task_type: str, *, several: bool, drops_tokens: bool, longest: int | None) -> str:
    stock, call = USES.get(task_type, USES["text-classification"])
    call = SEVERAL if several else call
    # an embedder reads texts itself
    imports = "" if stock is None else "\nfrom transformers import AutoTokenizer"
    reader = "" if stock is None else '\ntokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'
    code = f"""```python
import prunekit{imports}

model = prunekit.load("path/to/this/folder"){reader}
{call}
```"""
    if result.is_dense:
        return code
    loads = "SentenceTransformer(...)" if stock is None else f"AutoModelFor{stock}.from_pretrained(...)"
    if not drops_tokens:
        cut = f"; cut its texts, with `truncation=True, max_length={longest}` for the tokenizer" if longest else ""
        return f"{code}\n\nWithout prunekit, `{loads}` loads the same model{cut}."
    return (
        f"{code}\n\n"
        f"Without prunekit, `{loads}` loads the same weights as a plain "
        "**dense** model: nothing is pruned, nothing is faster, and its logits differ slightly from those above."
    )


def _limits(result: RunResult, labels: list[str] | None, drops_tokens: bool) -> str:
    lines = [f"- Trained and evaluated on {result.task} only, with one seed ({result.seed})."]
    if labels:
        lines.append(f"- Classes: {', '.join(labels)}.")
    if not result.is_dense:
        if drops_tokens:
            lines.append("- The weights on disk are as large as the dense model's: tokens are pruned, not weights.")
        slower = [row.batch_size for row in result.speed if row.speedup_vs_packed < 1]
        if slower:
            sizes = ", ".join(map(str, slower))
            lines.append(f"- At batch size {sizes} the dense model was faster where this was measured; use it there.")
        asked = [line for line in verdicts(result) if line[0] in ("budget", "knob", "goal")]
        lines += [f"- The {label} was not met: {sentence}." for label, sentence, tone in asked if tone == "bad"]
    if counts := [f"{cut.rows} {split}" for split, cut in (result.truncated or {}).items() if cut.rows]:
        lines.append(f"- Texts longer than the model sees were cut: {', '.join(counts)} texts.")
    return "\n".join(lines)
