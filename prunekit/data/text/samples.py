"""Calibration samples and evaluation text of a text task, as token ids: a function of files, seed and tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from jaxtyping import Int
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunekit.data.errors import DataError
from prunekit.data.loading import generator_of
from prunekit.data.synthetic import FILLERS, MARKERS
from prunekit.data.tables import read_table
from prunekit.data.text.spec import ChoiceSpec, Corpus, CorpusFiles, GenerationSpec, TextSource, TextSpec

Stream = Literal["open", "domain", "mixed"]


@dataclass(frozen=True)
class TokenSample:
    """One calibration sequence; `counts` marks the tokens whose prediction enters the loss (None: all)."""

    ids: Int[Tensor, "tokens"]
    counts: Int[Tensor, "tokens"] | None = None


@dataclass(frozen=True)
class Documents:
    """Rendered documents of one corpus.

    `prompts` is the number of leading prompt characters of each calibration document. `overlap` calibration documents
    were left out because they are also evaluated, and `duplicates` because they are exact repetitions.
    """

    calibration: list[str]
    evaluation: list[str]
    prompts: list[int]
    overlap: int = 0
    duplicates: int = 0


@dataclass(frozen=True)
class Question:
    """A prompt, its possible continuations, and the index of the correct one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Texts:
    """All texts of a task before tokenisation."""

    spec: TextSpec
    documents: Mapping[str, Documents]
    questions: list[Question] = field(default_factory=list)
    references: list[tuple[str, str]] = field(default_factory=list)


# -- reading -----------------------------------------------------------------------------------------


def read_texts(spec: TextSpec, source: TextSource) -> Texts:
    """Read, render and split all files of a task.

    Raises:
        DataError: a file that cannot be read, a template with a column that the file does not have, or a corpus
            without documents.
    """
    if spec.synthetic_rows:
        return _synthetic(spec)
    assert source.open is not None
    assert source.domain is not None
    documents = {
        "open": read_documents(spec.open, source.open, "open"),
        "domain": read_documents(spec.domain, source.domain, "domain"),
    }
    questions = [] if spec.choice is None or source.choice is None else read_questions(spec.choice, source.choice)
    references = []
    if spec.generation is not None and source.generation is not None:
        references = _references(spec.generation, source.generation)
        documents = {name: _drop_references(corpus, references) for name, corpus in documents.items()}
    return Texts(spec, documents, questions, references)


def read_documents(corpus: Corpus, files: CorpusFiles, name: str) -> Documents:
    """Return the documents of a corpus, without empty ones and exact repetitions.

    A calibration document that is also in the evaluation text, up to case and white space, is left out and counted.

    Raises:
        DataError: no document is left to calibrate on, or to evaluate.
    """
    rendered, duplicates = _drop_duplicates(_render(corpus, files.calibration, name))
    if files.evaluation is not None:
        held_out = [prompt + completion for prompt, completion in _render(corpus, files.evaluation, name)]
    else:
        order = sorted("".join(pair) for pair in rendered)
        order.sort(key=_hash_fraction)
        held_out = order[: math.ceil(corpus.held_out * len(order))]
        excluded = set(held_out)
        rendered = [pair for pair in rendered if "".join(pair) not in excluded]
    evaluated = {_normalise(text) for text in held_out}
    kept = [(p, c) for p, c in rendered if _normalise(p + c) not in evaluated]
    if not kept or not held_out:
        raise DataError(
            f"task.{name}: {files.calibration} leaves {len(kept)} documents to calibrate on and {len(held_out)} to "
            f"measure on.\nAllowed: 1 or more of each.\nGive more text, or task.{name}.eval_file=..."
        )
    overlap = len(rendered) - len(kept)
    return Documents([p + c for p, c in kept], held_out, [len(p) for p, _ in kept], overlap, duplicates)


def _render(corpus: Corpus, path: Path, name: str) -> list[tuple[str, str]]:
    """Return prompt and completion of each row, "" if there is no completion; empty documents are left out."""
    rows = _rows(path)
    prompt = _template(corpus.template, f"task.{name}.template")
    completion = _template(corpus.completion or "", f"task.{name}.completion")
    pairs = []
    for number, row in enumerate(rows):
        pair = (_fill(prompt, row, path, number, name), _fill(completion, row, path, number, name))
        if "".join(pair).strip():
            pairs.append(pair)
    return pairs


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() == ".txt":
        # documents are separated by blank lines; if there are none, each line is a document
        text = path.read_text(encoding="utf-8", errors="replace")
        parts = re.split(r"\n\s*\n", text) if re.search(r"\n\s*\n", text.strip()) else text.splitlines()
        return [{"text": part.strip("\n")} for part in parts]
    table = read_table(path)
    names = list(table.columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*table.columns.values(), strict=True)]


def _template(text: str, key: str) -> Template:
    try:
        return SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)
    except TemplateError as error:
        raise DataError(
            f"{key}={text!r} is not a Jinja template ({error}).\nAllowed: text with {{{{ column }}}}.\nCorrect it."
        ) from error


def _fill(template: Template, row: Mapping[str, Any], path: Path, number: int, name: str) -> str:
    try:
        # as one mapping, because a column may be called self
        return str(template.render({key: "" if value is None else value for key, value in row.items()}))
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise DataError(
            f"{path}, row {number + 1}: the template of task.{name} cannot be filled ({error}).\n"
            f"Allowed: the columns {', '.join(row)}.\nSet task.{name}.template='...{{{{ column }}}}...'"
        ) from error


def _drop_duplicates(pairs: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], int]:
    """Return the distinct pairs in order, and the number of repetitions."""
    distinct = list(dict.fromkeys(pairs))
    return distinct, len(pairs) - len(distinct)


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())


def _hash_fraction(text: str) -> float:
    """Return a number in 0..1 that depends only on the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def read_questions(spec: ChoiceSpec, path: Path) -> list[Question]:
    """Return the first `rows` questions in an order that depends only on their text.

    Raises:
        DataError: an answer that is not among the choices.
    """
    template = _template(spec.template, "task.choice.template")
    questions = []
    for number, row in enumerate(_rows(path)):
        prompt = _fill(template, row, path, number, "choice")
        answer = str(row.get(spec.answer, "")).strip()
        if answer not in spec.choices:
            raise DataError(
                f"{path}, row {number + 1}: column {spec.answer!r} holds {answer!r}.\n"
                f"Allowed: {', '.join(spec.choices)}.\nCorrect task.choice.choices or task.choice.answer."
            )
        questions.append(Question(prompt, spec.choices, spec.choices.index(answer)))
    return sorted(questions, key=lambda question: _hash_fraction(question.prompt))[: spec.rows]


def _references(spec: GenerationSpec, path: Path) -> list[tuple[str, str]]:
    prompt = _template(spec.template, "task.generation.template")
    reference = _template(spec.reference, "task.generation.reference")
    pairs = [
        (_fill(prompt, row, path, n, "generation"), _fill(reference, row, path, n, "generation"))
        for n, row in enumerate(_rows(path))
    ]
    return sorted(pairs, key=lambda pair: _hash_fraction(pair[0]))[: spec.rows]


def _drop_references(documents: Documents, references: Sequence[tuple[str, str]]) -> Documents:
    """Drop calibration documents that contain a prompt with its reference text, and count them as overlap."""
    scored = [_normalise(f"{prompt} {reference}") for prompt, reference in references]
    keep = [not any(text in _normalise(document) for text in scored) for document in documents.calibration]
    if not any(keep):
        raise DataError(
            "every document to calibrate on is also generated and scored by ROUGE.\n"
            "Allowed: at least one that is not.\nGive task.generation.file=..., or fewer task.generation.rows."
        )
    return dataclasses.replace(
        documents,
        calibration=list(compress(documents.calibration, keep)),
        prompts=list(compress(documents.prompts, keep)),
        overlap=documents.overlap + keep.count(False),
    )


def _synthetic(spec: TextSpec) -> Texts:
    """Generate documents: the domain repeats a few words, the open corpus a few others."""
    documents = {}
    for name, words in (("open", FILLERS), ("domain", MARKERS)):
        random = Random(name)
        texts = [
            " ".join(random.choice(words) for _ in range(random.randint(30, 60)))
            for _ in range(spec.synthetic_rows or 1)
        ]
        documents[name] = Documents(texts[:-4], texts[-4:], [0] * len(texts[:-4]))
    questions = [Question("ba de", (FILLERS[n], MARKERS[n]), n % 2) for n in range(4)] if spec.choice else []
    references = [("ba de", "fi go")] if spec.generation else []
    return Texts(spec, documents, questions, references)


# -- tokens ------------------------------------------------------------------------------------------


def calibration_samples(
    texts: Texts, stream: Stream, tokenizer: PreTrainedTokenizerBase, seed: int, longest: int
) -> list[TokenSample]:
    """Return the samples of one stream, none longer than `longest`; "mixed" is half of the samples of each corpus.

    Raises:
        DataError: there is too little text.
    """
    if stream == "mixed":
        parts = [calibration_samples(texts, name, tokenizer, seed, longest) for name in ("open", "domain")]
        return [sample for part in parts for sample in part[: (len(part) + 1) // 2]]
    corpus = texts.spec.open if stream == "open" else texts.spec.domain
    documents = texts.documents[stream]
    length = min(corpus.seqlen, longest)
    order = torch.randperm(len(documents.calibration), generator=generator_of("calibration", stream, seed)).tolist()
    if corpus.pack == "packed":
        samples = _pack_documents(documents.calibration, order, corpus.samples, length, tokenizer, seed)
    else:
        # only the domain has completions
        completion_only = stream == "domain" and texts.spec.loss_on == "completion"
        samples = _take_examples(documents, order, corpus.samples, length, tokenizer, completion_only)
    if len(samples) < corpus.samples:
        raise DataError(
            f"task.{stream} gives {len(samples)} samples of {length} tokens, "
            f"not task.{stream}.samples={corpus.samples}.\n"
            f"Allowed: up to {max(1, len(samples))} with this text.\n"
            f"Lower task.{stream}.samples or task.{stream}.seqlen, or give more text."
        )
    return samples


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, verbose=False)["input_ids"])


def _pack_documents(
    documents: Sequence[str],
    order: Sequence[int],
    count: int,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> list[TokenSample]:
    """Return samples that each start in another document and continue in the next ones.

    A sample that fits in one document starts at a random place of it.
    """
    random, used = Random(f"window {seed}"), set[int]()
    samples: list[TokenSample] = []
    for start in order:
        if len(samples) == count:
            break
        if start in used:
            continue
        ids: list[int] = []
        place = start
        while len(ids) < length and place < len(documents) and place not in used:
            # part of a very long document is enough: ten characters per token are more than needed
            text = documents[place]
            if not ids and len(text) > 20 * length:
                begin = random.randrange(len(text) - 10 * length)
                text = text[begin : begin + 10 * length]
            ids += _ids(tokenizer, text if not ids else "\n" + text)
            used.add(place)
            place += 1
        if len(ids) >= length:
            begin = random.randint(0, len(ids) - length) if place == start + 1 else 0
            samples.append(TokenSample(torch.tensor(ids[begin : begin + length])))
    return samples


def _take_examples(
    documents: Documents,
    order: Sequence[int],
    count: int,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    completion_only: bool,
) -> list[TokenSample]:
    """Return samples of one document each, truncated at the end; with `completion_only` prompt tokens do not count."""
    samples: list[TokenSample] = []
    for place in order:
        if len(samples) == count:
            break
        text, prompt = documents.calibration[place], documents.prompts[place]
        ids = _ids(tokenizer, text)[:length]
        if len(ids) < 2:
            continue
        counts = None
        if completion_only:
            before = min(len(_ids(tokenizer, text[:prompt])), len(ids))
            if before >= len(ids):
                continue
            counts = torch.tensor([0] * before + [1] * (len(ids) - before))
        samples.append(TokenSample(torch.tensor(ids), counts))
    return samples


def evaluation_ids(texts: Texts, stream: str, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, "tokens"]:
    """Return the first `eval_tokens` tokens of a corpus' held-out documents; their order depends only on the files.

    Documents from an evaluation file keep their order; held-out ones are sorted by content hash. One document
    contributes at most an eighth of the tokens, but up to 64 in any case.

    Raises:
        DataError: fewer than 2 tokens.
    """
    count = texts.spec.eval_tokens
    documents = texts.documents[stream].evaluation
    ids: list[int] = []
    for text in documents:
        ids += _ids(tokenizer, text[: 10 * count] + "\n")[: max(64, count // 8)]
        if len(ids) >= count:
            break
    if len(ids) < 2:
        raise DataError(
            f"task.{stream}: the evaluation text has {len(ids)} tokens.\nAllowed: 2 or more.\nGive more text."
        )
    return torch.tensor(ids[:count])


def samples_digest(samples: Sequence[TokenSample]) -> str:
    """Return the hex digest of the samples' tokens."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.ids.tolist(), None if sample.counts is None else sample.counts.tolist())).encode())
    return digest.hexdigest()
