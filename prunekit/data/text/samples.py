"""Calibration samples and evaluation text of a text task, as token numbers. A function of files, seed and tokenizer."""

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
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunekit.data.loading import generator_of
from prunekit.data.spec import DataError
from prunekit.data.synthetic import FILLERS, MARKERS
from prunekit.data.tables import read_table
from prunekit.data.text.spec import ChoiceSpec, Corpus, CorpusFiles, GenerationSpec, TextSource, TextSpec

Stream = Literal["open", "domain", "mixed"]


@dataclass(frozen=True)
class TokenSample:
    """One calibration sequence; `counts` marks the tokens whose prediction enters the loss, None = all."""

    ids: Int[Tensor, "tokens"]
    counts: Int[Tensor, "tokens"] | None = None


@dataclass(frozen=True)
class Documents:
    """Rendered documents of one corpus; `overlap` of those to calibrate on were left out as they are evaluated too.

    `prompts` holds, per calibration document, how many of its first characters are prompt.
    """

    calibration: list[str]
    evaluation: list[str]
    prompts: list[int]
    overlap: int = 0
    duplicates: int = 0


@dataclass(frozen=True)
class Question:
    """A prompt, its possible continuations, and the number of the right one."""

    prompt: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Texts:
    """Everything a text task reads, before tokenisation."""

    spec: TextSpec
    documents: Mapping[str, Documents]
    questions: list[Question] = field(default_factory=list)
    references: list[tuple[str, str]] = field(default_factory=list)


# -- reading -----------------------------------------------------------------------------------------


def read_texts(spec: TextSpec, source: TextSource) -> Texts:
    """Reads, renders and splits all files of a task.

    Raises:
        DataError: a file that cannot be read, a template whose column is missing, a corpus without documents.
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
        documents = {name: _without(found, references) for name, found in documents.items()}
    return Texts(spec, documents, questions, references)


def read_documents(corpus: Corpus, files: CorpusFiles, name: str) -> Documents:
    """The documents of a corpus, without empty ones and exact repetitions; a calibration document that also is in the
    evaluation text, but for case and white space, is left out and counted.
    """
    rendered = _unique(_render(corpus, files.calibration, name))
    if files.evaluation is not None:
        held = [prompt + completion for prompt, completion in _render(corpus, files.evaluation, name)]
    else:
        order = sorted("".join(pair) for pair in rendered[0])
        order.sort(key=_share)
        held = order[: math.ceil(corpus.held_out * len(order))]
        apart = set(held)
        rendered = ([pair for pair in rendered[0] if "".join(pair) not in apart], rendered[1])
    known = {_plain(text) for text in held}
    kept = [(p, c) for p, c in rendered[0] if _plain(p + c) not in known]
    if not kept or not held:
        raise DataError(
            f"task.{name}: {files.calibration} leaves {len(kept)} documents to calibrate on and {len(held)} to "
            f"measure on.\nAllowed: 1 or more of each.\nGive more text, or task.{name}.eval_file=..."
        )
    overlap = len(rendered[0]) - len(kept)
    return Documents([p + c for p, c in kept], held, [len(p) for p, _ in kept], overlap, rendered[1])


def _render(corpus: Corpus, path: Path, name: str) -> list[tuple[str, str]]:
    """Prompt and completion of each row, "" where there is no completion; empty documents are left out."""
    rows = _rows(path)
    prompt = _template(corpus.template, f"task.{name}.template")
    completion = _template(corpus.completion or "", f"task.{name}.completion")
    found = []
    for number, row in enumerate(rows):
        pair = (_filled(prompt, row, path, number, name), _filled(completion, row, path, number, name))
        if "".join(pair).strip():
            found.append(pair)
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() == ".txt":
        # a blank line ends a document; without any, a line does
        text = path.read_text(encoding="utf-8", errors="replace")
        parts = re.split(r"\n\s*\n", text) if re.search(r"\n\s*\n", text.strip()) else text.splitlines()
        return [{"text": part.strip("\n")} for part in parts]
    table = read_table(path)
    names = list(table.columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*table.columns.values(), strict=True)]


def _template(text: str, key: str) -> Any:
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    try:
        return SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)
    except TemplateError as error:
        raise DataError(
            f"{key}={text!r} is no Jinja template ({error}).\nAllowed: text with {{{{ column }}}}.\nCorrect it."
        ) from error


def _filled(template: Any, row: Mapping[str, Any], path: Path, number: int, name: str) -> str:
    from jinja2 import TemplateError

    try:
        # as one mapping: a column may be called self
        return str(template.render({key: "" if value is None else value for key, value in row.items()}))
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise DataError(
            f"{path}, row {number + 1}: the template of task.{name} cannot be filled ({error}).\n"
            f"Allowed: the columns {', '.join(row)}.\nSet task.{name}.template='...{{{{ column }}}}...'"
        ) from error


def _unique(pairs: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], int]:
    once = list(dict.fromkeys(pairs))
    return once, len(pairs) - len(once)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _share(text: str) -> float:
    """A number in 0..1 that hangs on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def read_questions(spec: ChoiceSpec, path: Path) -> list[Question]:
    """The first `rows` questions in an order that hangs on their text alone.

    Raises:
        DataError: an answer that is not among the choices.
    """
    template = _template(spec.template, "task.choice.template")
    found = []
    for number, row in enumerate(_rows(path)):
        prompt = _filled(template, row, path, number, "choice")
        answer = str(row.get(spec.answer, "")).strip()
        if answer not in spec.choices:
            raise DataError(
                f"{path}, row {number + 1}: column {spec.answer!r} holds {answer!r}.\n"
                f"Allowed: {', '.join(spec.choices)}.\nCorrect task.choice.choices or task.choice.answer."
            )
        found.append(Question(prompt, spec.choices, spec.choices.index(answer)))
    return sorted(found, key=lambda question: _share(question.prompt))[: spec.rows]


def _references(spec: GenerationSpec, path: Path) -> list[tuple[str, str]]:
    prompt = _template(spec.template, "task.generation.template")
    reference = _template(spec.reference, "task.generation.reference")
    pairs = [
        (_filled(prompt, row, path, n, "generation"), _filled(reference, row, path, n, "generation"))
        for n, row in enumerate(_rows(path))
    ]
    return sorted(pairs, key=lambda pair: _share(pair[0]))[: spec.rows]


def _without(documents: Documents, references: Sequence[tuple[str, str]]) -> Documents:
    """Without calibration documents that hold a prompt with its reference text; they are counted as overlap."""
    measured = [_plain(f"{prompt} {reference}") for prompt, reference in references]
    stays = [not any(text in _plain(document) for text in measured) for document in documents.calibration]
    if not any(stays):
        raise DataError(
            "every document to calibrate on is also generated and scored by ROUGE.\n"
            "Allowed: at least one that is not.\nGive task.generation.file=..., or fewer task.generation.rows."
        )
    return dataclasses.replace(
        documents,
        calibration=list(compress(documents.calibration, stays)),
        prompts=list(compress(documents.prompts, stays)),
        overlap=documents.overlap + stays.count(False),
    )


def _synthetic(spec: TextSpec) -> Texts:
    """Generated documents: the domain repeats a few of its own words, the open corpus others."""
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
    """Samples of one stream; "mixed" takes half of the samples of each corpus. None is longer than `longest`.

    Raises:
        DataError: too little text.
    """
    if stream == "mixed":
        parts = [calibration_samples(texts, name, tokenizer, seed, longest) for name in ("open", "domain")]
        return [sample for part in parts for sample in part[: (len(part) + 1) // 2]]
    corpus = texts.spec.open if stream == "open" else texts.spec.domain
    documents = texts.documents[stream]
    length = min(corpus.seqlen, longest)
    order = torch.randperm(len(documents.calibration), generator=generator_of("calibration", stream, seed)).tolist()
    if corpus.pack == "packed":
        found = _packed(documents.calibration, order, corpus.samples, length, tokenizer, seed)
    else:
        # only the domain has completions
        completion_only = stream == "domain" and texts.spec.loss_on == "completion"
        found = _examples(documents, order, corpus.samples, length, tokenizer, completion_only)
    if len(found) < corpus.samples:
        raise DataError(
            f"task.{stream} gives {len(found)} samples of {length} tokens, "
            f"not task.{stream}.samples={corpus.samples}.\n"
            f"Allowed: up to {max(1, len(found))} with this text.\n"
            f"Set task.{stream}.samples or task.{stream}.seqlen lower, or give more text."
        )
    return found


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, verbose=False)["input_ids"])


def _packed(
    documents: Sequence[str],
    order: Sequence[int],
    count: int,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> list[TokenSample]:
    """Each sample begins in another document, at a random place of a long one, and goes on in those that follow."""
    random, used = Random(f"window {seed}"), set[int]()
    found: list[TokenSample] = []
    for start in order:
        if len(found) == count:
            break
        if start in used:
            continue
        ids: list[int] = []
        place = start
        while len(ids) < length and place < len(documents) and place not in used:
            # of a very long document a part is enough: ten characters per token are more than it takes
            text = documents[place]
            if not ids and len(text) > 20 * length:
                begin = random.randrange(len(text) - 10 * length)
                text = text[begin : begin + 10 * length]
            ids += _ids(tokenizer, text if not ids else "\n" + text)
            used.add(place)
            place += 1
        if len(ids) >= length:
            begin = random.randint(0, len(ids) - length) if place == start + 1 else 0
            found.append(TokenSample(torch.tensor(ids[begin : begin + length])))
    return found


def _examples(
    documents: Documents,
    order: Sequence[int],
    count: int,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    completion_only: bool,
) -> list[TokenSample]:
    """One document per sample, cut at its end; with `completion_only` the prompt's tokens do not count."""
    found: list[TokenSample] = []
    for place in order:
        if len(found) == count:
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
        found.append(TokenSample(torch.tensor(ids), counts))
    return found


def evaluation_ids(texts: Texts, stream: str, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, "tokens"]:
    """The first `eval_tokens` tokens of a corpus' held-out documents, in an order that hangs on the files alone.

    Documents of a file of its own stay in its order; held-out ones follow each other by content hash. At most an
    eighth of the tokens come from one document.
    """
    wanted = texts.spec.eval_tokens
    documents = texts.documents[stream].evaluation
    ids: list[int] = []
    for text in documents:
        ids += _ids(tokenizer, text[: 10 * wanted] + "\n")[: max(64, wanted // 8)]
        if len(ids) >= wanted:
            break
    if len(ids) < 2:
        raise DataError(
            f"task.{stream}: the evaluation text has {len(ids)} tokens.\nAllowed: 2 or more.\nGive more text."
        )
    return torch.tensor(ids[:wanted])


def samples_digest(samples: Sequence[TokenSample]) -> str:
    """Hex digest of the tokens."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.ids.tolist(), None if sample.counts is None else sample.counts.tolist())).encode())
    return digest.hexdigest()
