"""Prune a cross-encoder without labels, and compare its rankings with those of itself on shorter texts.

./run python benchmarks/rerank.py save=benchmarks/results/rerank.json   # 15 to 25 minutes of one core; resumes
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from prunekit.bench.timing import time_batches
from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script, train_apart
from prunekit.config.composition import compose
from prunekit.config.errors import DONE
from prunekit.data.reading import read_task
from prunekit.data.rows import Rows
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
from prunekit.environment import cpu_model, versions
from prunekit.evaluation.agreement import top_overlap
from prunekit.files import atomic_write_text
from prunekit.models.reranker import IDENTITY, MARK
from prunekit.results.words import format_score
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical
from prunekit.runtime.engine import PackedEngine
from prunekit.runtime.loading import load

SETTINGS = Path(__file__).with_suffix(".yaml")
GIVEN = "minilm-reranker"  # the folder of the cross-encoder
COMMON = ["task=csv", "task.text=query", "task.text_pair=document", "plots=false", "trainer.threads=1"]
COMMON += ["bench.enabled=false"]  # measured here, beside the given model on shorter texts
LENGTHS = (*range(12, 41, 2), 44, 48, 56, 64, 80, 96)  # at which the given model is measured
SENTENCES = 2  # of a candidate
NEAR = 150  # rows before and after a question, in which other passages of its article are
END = re.compile(r"[.!?][\"')\]]*\s+(?=[\"'(\[]?[A-Z])")  # of a sentence, roughly


@dataclass(frozen=True)
class Candidates:
    """A question with parts of passages, of which `right` are those that hold the answer."""

    question: str
    texts: tuple[str, ...]
    right: frozenset[int]


def main(arguments: Sequence[str]) -> int:
    """Write the tables, make the cross-encoder, prune it at each budget, and measure all of them. Return 0."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    folder = Path(given["folder"]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tested, scored = write_tables(folder, given)
    common = [*COMMON, f"task.max_length={given['length']}"]
    dense = ["method=dense", "backbone=minilm", "task.kind=regression", "task.label=score", "trainer.epochs=2", *common]
    dense += [f"task.file={folder / 'labelled.csv'}", f"runs_dir={folder / 'given'}", "task.contradicting=keep"]
    train_apart(dense)
    save_as_cross_encoder(path_of(dense) / "model", folder / GIVEN)
    runs: dict[str, Path] = {}
    asked = [(budget, True) for budget in given["budgets"]] + [(budget, False) for budget in given["unprotected"]]
    for budget, protects in asked:
        words = ["method=topk", f"model={folder / GIVEN}", f"task.file={folder / 'texts.csv'}", "task.label=null"]
        words += [*common, "task.group=query", f"task.test_file={folder / 'test.csv'}", f"budget={budget}"]
        words += [f"trainer.epochs={given['epochs']}", f"runs_dir={folder / 'runs'}"]
        words += [*(f"{key}={value}" for key, value in given["settings"].items())] + ["protect=none"] * (not protects)
        train_apart(words)
        runs[budget if protects else f"{budget}, nothing protected"] = path_of(words)
    found = measure(folder / GIVEN, runs, tested, scored, given)
    found["settings"] = {name: value for name, value in given.items() if name not in ("folder", "save")}
    text = json.dumps(found, indent=1) + "\n"
    atomic_write_text(folder / "rerank.json", text)
    if given["save"] is not None:
        atomic_write_text(Path(given["save"]), text)
    print(table(found))
    return DONE


# -- data ------------------------------------------------------------------------------------------------


def write_tables(folder: Path, given: Mapping[str, Any]) -> tuple[list[Candidates], list[tuple[str, str, float]]]:
    """Write what the cross-encoder is fine-tuned on, pairs without labels, and a test; return what is tested."""
    stsb, qnli = splits_of("stsb"), splits_of("qnli")
    random, count = Random(1), given["labelled"]
    rows = [(one, two, score / 5) for one, two, score in shuffled(stsb["train"], random)[:count]]
    rows += [(one, two, 1.0 - label) for one, two, label in shuffled(qnli["train"], random)[:count]]
    write(folder / "labelled.csv", ("query", "document", "score"), shuffled(rows, random))
    learned = candidates_of("train", given["queries"], given["candidates"], Random(2))
    texts = [(one, two) for one, two, _ in shuffled(stsb["train"], Random(3))[: given["pairs"]]]
    texts += [(row.question, sentence) for row in learned for sentence in row.texts]
    write(folder / "texts.csv", ("query", "document"), dict.fromkeys(shuffled(texts, Random(4))))
    tested = candidates_of("validation", given["tested"], given["candidates"], Random(5))
    pairs = [(row.question, text) for row in tested for text in row.texts]
    write(folder / "test.csv", ("query", "document"), pairs)
    return tested, list(stsb["validation"])


def splits_of(task: str) -> dict[str, list[tuple[str, str, float]]]:
    """Return the pairs of a task with their labels, by split."""
    spec = TaskSpec.from_config(compose([f"task={task}"])[0]["task"])
    found = read_task(spec, find_task(spec))
    return {name: triples(rows) for name, rows in found.splits.items()}


def triples(rows: Rows[Any]) -> list[tuple[str, str, float]]:
    """Return pairs with their labels."""
    return [(one, two, float(label)) for one, two, label in zip(rows.texts, rows.pairs or (), rows.labels, strict=True)]


def candidates_of(split: str, count: int, size: int, random: Random) -> list[Candidates]:
    """Return questions of SQuAD with the parts of their passage, and as many parts of others of the article."""
    spec = TaskSpec.from_config(compose(["task=squad1"])[0]["task"])
    rows = read_task(spec, find_task(spec)).splits[split]
    passages = rows.pairs or ()
    found = []
    for row in random.sample(range(len(rows)), len(rows)):
        asked = rows.labels[row].starts[0]
        own = [*parts(passages[row])][:size]
        right = {place for place, (_, start, end) in enumerate(own) if start <= asked < end}
        near = range(max(0, row - NEAR), min(len(rows), row + NEAR))
        others = dict.fromkeys(
            text for place in near if passages[place] != passages[row] for text, *_ in parts(passages[place])
        )
        if len(right) != 1 or len(own) + len(others) < size:
            continue
        texts = [text for text, _, _ in own] + random.sample(list(others), size - len(own))
        places = random.sample(range(size), size)
        shown = tuple(texts[place] for place in places)
        found.append(Candidates(rows.texts[row], shown, frozenset(places.index(place) for place in right)))
        if len(found) == count:
            break
    return found


def parts(passage: str) -> Iterator[tuple[str, int, int]]:
    """Yield a passage in pieces of some sentences, with their first character and the one after their last."""
    ends = [match.end() for match in END.finditer(passage)]
    start = 0
    for end in [*ends[SENTENCES - 1 :: SENTENCES], len(passage)]:
        if passage[start:end].strip():
            yield passage[start:end].strip(), start, end
        start = end


def shuffled(rows: Sequence[Any], random: Random) -> list[Any]:
    """Return rows in another order."""
    return random.sample(list(rows), len(rows))


def write(path: Path, names: Sequence[str], rows: Any) -> None:
    """Write rows as a table."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows(rows)


# -- models ----------------------------------------------------------------------------------------------


def path_of(words: Sequence[str]) -> Path:
    """Return the folder of a run."""
    return RunFolder.of(canonical(compose(words)[0])).path


def save_as_cross_encoder(source: Path, folder: Path) -> None:
    """Copy a model as CrossEncoder writes it: without anything of prunekit, and with the activation of its scores."""
    folder.mkdir(exist_ok=True)
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy2(source / name, folder / name)
    config = json.loads((source / "config.json").read_text())
    text = json.dumps(config | {MARK: {"activation_fn": IDENTITY}}, indent=2) + "\n"
    if not (folder / "config.json").is_file() or (folder / "config.json").read_text() != text:
        (folder / "config.json").write_text(text)


# -- measurements ----------------------------------------------------------------------------------------


def measure(
    dense: Path,
    runs: Mapping[str, Path],
    tested: Sequence[Candidates],
    scored: Sequence[tuple[str, str, float]],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the scores of all models, and of the dense one on texts cut to the milliseconds of each other one."""
    engine = load(dense, engine="packed", threads=1, max_length=given["length"])
    pruned = {name: load(path, engine="packed", threads=1) for name, path in runs.items()}
    reference = answers(engine, tested, scored, given["length"])
    milliseconds = timed(engine, pruned, tested, given)
    rows = {"dense": rated(reference, reference, tested, scored) | {"ms": milliseconds["dense"]}}
    lengths = {length: milliseconds[f"cut at {length}"] for length in LENGTHS if length < given["length"]}
    for name, other in pruned.items():
        own = rated(answers(other, tested, scored, given["length"]), reference, tested, scored)
        rows[name] = own | {"ms": milliseconds[name], "flops_vs_unpadded": flops_of(runs[name])}
        fitting = [length for length, spent in lengths.items() if spent <= milliseconds[name]]
        if fitting and "nothing protected" not in name:
            length = max(fitting)
            cut = rated(answers(engine, tested, scored, length), reference, tested, scored)
            rows[f"truncate as {name}"] = cut | {"ms": lengths[length], "length": length}
    by_length = {str(length): spent for length, spent in lengths.items()}
    return {
        "rows": rows,
        "truncate_ms": by_length,
        "queries": len(tested),
        "pairs": len(scored),
        "cpu": cpu_model(),
        "versions": versions(),
    }


def flops_of(run: Path) -> float:
    """Return the FLOPs reduction that a run measured on its test."""
    found: float = json.loads((run / "result.json").read_text())["flops"]["flops_vs_unpadded"]
    return found


def answers(
    engine: PackedEngine, tested: Sequence[Candidates], scored: Sequence[tuple[str, str, float]], length: int
) -> tuple[Tensor, Tensor]:
    """Return the scores of the candidates of all questions, and of the scored pairs."""
    ranked = [engine(tokens(engine, [(row.question, text) for text in row.texts], length)).logits for row in tested]
    pairs = [(one, two) for one, two, _ in scored]
    found = [engine(tokens(engine, pairs[start : start + 32], length)).logits for start in range(0, len(pairs), 32)]
    return torch.cat(ranked)[:, 0], torch.cat(found)[:, 0]


def tokens(engine: PackedEngine, pairs: Sequence[tuple[str, str]], length: int) -> dict[str, Tensor]:
    """Return the token ids of pairs, cut as CrossEncoder cuts them: the longer text first."""
    one, two = map(list, zip(*pairs, strict=True))
    return dict(engine.tokenizer(one, two, truncation=True, max_length=length, padding=True, return_tensors="pt"))


def rated(
    found: tuple[Tensor, Tensor],
    reference: tuple[Tensor, Tensor],
    tested: Sequence[Candidates],
    scored: Sequence[tuple[str, str, float]],
) -> dict[str, float | None]:
    """Return the agreement with the dense model's scores, and what the labels say of the scores."""
    queries = torch.tensor([number for number, row in enumerate(tested) for _ in row.texts])
    starts = [0]
    for row in tested:
        starts.append(starts[-1] + len(row.texts))
    ranks = []
    for start, row in zip(starts, tested, strict=False):
        order = found[0][start : start + len(row.texts)].argsort(descending=True, stable=True).tolist()
        ranks.append(1 + min(order.index(place) for place in row.right))
    return {
        "overlap@10": top_overlap(found[0], reference[0], queries),
        "qnli_spearman": float(spearmanr(found[0], reference[0]).statistic),
        "stsb_spearman": float(spearmanr(found[1], reference[1]).statistic),
        "stsb_spearman_labels": float(spearmanr(found[1], [score for _, _, score in scored]).statistic),
        "answer_first": sum(rank == 1 for rank in ranks) / len(ranks),
        "answer_mrr": sum(1 / rank for rank in ranks) / len(ranks),
    }


def timed(
    engine: PackedEngine, pruned: Mapping[str, PackedEngine], tested: Sequence[Candidates], given: Mapping[str, Any]
) -> dict[str, float]:
    """Return the milliseconds of CPU time per question with its candidates, medians over rounds; tokenised before."""
    some = tested[:12]
    pairs = [[(row.question, text) for text in row.texts] for row in some]
    own = [tokens(engine, batch, given["length"]) for batch in pairs]

    def reader(reads: PackedEngine, batches: Sequence[dict[str, Tensor]]) -> Callable[[int], object]:
        return lambda number: reads(batches[number])

    candidates = {"dense": reader(engine, own)} | {name: reader(other, own) for name, other in pruned.items()}
    for length in (length for length in LENGTHS if length < given["length"]):
        candidates[f"cut at {length}"] = reader(engine, [tokens(engine, batch, length) for batch in pairs])
    spent = time_batches(candidates, range(len(some)), range(given["rounds"]), partial(_clock))
    return {
        name: 1000 * statistics.median(sum(cpu for (cpu,) in batch) / len(some) for batch in rounds[1:])
        for name, rounds in spent.items()
    }


def _clock() -> tuple[float, ...]:
    return (time.process_time(),)


COLUMNS = {
    "ms": "ms per query",
    "overlap@10": "overlap@10",
    "qnli_spearman": "Spearman, candidates",
    "stsb_spearman": "Spearman, STS-B",
    "stsb_spearman_labels": "STS-B, with people's scores",
    "answer_first": "answer first",
    "answer_mrr": "MRR of the answer",
}

ABOUT = (
    "MiniLM with one output, fine-tuned on {labelled} pairs each of STS-B and QNLI together, and pruned "
    "without labels on {queries} questions of SQuAD with {candidates} candidates each and {pairs} pairs of "
    "STS-B. Tested on {tested} other questions, whose candidates are two sentences of the answering passage or"
    " of others of its article, and on the {scored} validation pairs of STS-B. Overlap and the first two "
    "correlations are with the scores of the unpruned model. `truncate` is that model on texts cut to the most"
    " tokens that take no more milliseconds. Milliseconds are CPU time of one thread for the {candidates} "
    "candidates of a question, in the packed engine ({cpu})."
)


def table(found: Mapping[str, Any]) -> str:
    """Return the numbers as Markdown, with what was measured."""
    names = [name for name in COLUMNS if name != "ms"]
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row, values in found["rows"].items():
        shares = " | ".join(format_score(values[name]) for name in names)
        cut = f" ({values['length']} tokens)" if "length" in values else ""
        lines.append(f"| {row}{cut} | {values['ms']:.1f} | {shares} |")
    told = {**found["settings"], "tested": found["queries"], "scored": found["pairs"], "cpu": found["cpu"]}
    return "\n".join(lines) + f"\n\n{ABOUT.format(**told)}\n"


if __name__ == "__main__":
    run_script(main)
