"""Batches of small files are those that earlier versions gave: the same rows, tokens, labels, order and fingerprint.

fixtures/batches.json holds them as digests, computed before rows were kept in Arrow files.
"""

import hashlib
import json
import random

import pyarrow
import pyarrow.parquet
import pytest
from support.paths import TESTS

from prunekit.data.loading import StepLoader
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.sources import TaskSource, find_task
from prunekit.data.spec import TaskSpec
from prunekit.data.synthetic import FILLERS
from prunekit.models.tiny import build_tiny_backbone

STORED = TESTS / "fixtures" / "batches.json"
SIZES = {"batch_size": 4, "eval_batch_size": 8, "cache_dir": None}


def words(number, *, most=40):
    chosen = random.Random(f"row {number}")
    return " ".join(chosen.choice(FILLERS) for _ in range(chosen.randint(1, most)))


# values that other readers take for something else: missing, a number, a separator, a quote
ODD = ["NA", "nan", "1", "1.0", 'he said "bade"', "  bade  ", "né, bafi; bago", "null", "\u00a0bago", "TRUE"]
TEXTS = ODD + [words(number) for number in range(60)] + ["bade bafi"] * 2


def number_of(text):
    """A number that rows with the same text have in common, so that none contradicts another."""
    return sum(map(ord, text))


LABELS = [("no", "yes")[number_of(text) % 2] for text in TEXTS]


def write_csv(path, columns, separator):
    def cell(value):
        quoted = value.replace('"', '""')
        return f'"{quoted}"' if any(mark in value for mark in f'"\n{separator}') else value

    rows = zip(*columns.values(), strict=True)
    lines = [separator.join(columns), *(separator.join(map(cell, row)) for row in rows)]
    path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")


def write_jsonl(path, columns):
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path, columns):
    path.parent.mkdir(exist_ok=True, parents=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=16)


def csv_file(folder):
    write_csv(folder / "t.csv", {"text": TEXTS, "label": LABELS}, ",")
    return {"file": "t.csv", "test_fraction": 0.2}


def tsv_file(folder):
    plain = [text.replace('"', "'") for text in TEXTS]
    write_csv(folder / "t.tsv", {"label": LABELS, "text": plain}, "\t")
    write_csv(folder / "v.tsv", {"label": LABELS[:9], "text": plain[:9]}, "\t")
    return {"file": "t.tsv", "validation_file": "v.tsv"}


def jsonl_numbers(folder):
    labels = [number_of(text) % 3 for text in TEXTS]
    write_jsonl(folder / "t.jsonl", {"text": [*TEXTS[:-1], None], "label": labels, "more": ["x", 1] * 36})
    return {"file": "t.jsonl", "empty": "drop"}


def parquet_shards(folder):
    for shard in range(2):
        part = slice(shard * 30, shard * 30 + 30)
        labels = [number_of(text) % 2 for text in TEXTS][part]
        write_parquet(folder / f"hub/train-0000{shard}-of-00002.parquet", {"sentence": TEXTS[part], "label": labels})
    write_parquet(folder / "hub/validation-00000-of-00001.parquet", {"sentence": TEXTS[5:20], "label": [1, 0, 1] * 5})
    return {"file": "hub", "text": "sentence", "labels": ["bad", "good"], "validation_splits": ["validation"]}


def class_folders(folder):
    for number, text in enumerate(TEXTS):
        place = folder / "classes" / ("sport", "tech")[number_of(text) % 2]
        place.mkdir(exist_ok=True, parents=True)
        (place / f"{number:03}.txt").write_bytes(f"{text}\r\n£ {number}\n".encode(("utf-8", "cp1252")[number % 2]))
    return {"file": "classes", "test_fraction": 0.2, "test_split": None}


def pairs(folder):
    turned = [text[::-1] for text in TEXTS]
    write_csv(folder / "t.csv", {"first": TEXTS, "second": turned, "label": LABELS}, ";")
    return {"file": "t.csv", "text": "first", "text_pair": "second"}


def regression(folder):
    values = [round(number_of(text) / 7, 3) for text in TEXTS]
    write_jsonl(folder / "t.jsonl", {"text": TEXTS, "score": values})
    return {"file": "t.jsonl", "label": "score", "kind": "regression"}


def squad(folder):
    rows = []
    for number in range(24):
        context = f"{words(number, most=90)} bade bafi {words(number + 100)}"
        answers = {"text": ["bade bafi"], "answer_start": [context.index("bade bafi")]}
        rows.append((f"q{number}", f"bago {FILLERS[number]}", context, answers))
    columns = [[row[place] for row in rows] for place in range(4)]
    write_parquet(folder / "t.parquet", dict(zip(("id", "question", "context", "answers"), columns, strict=True)))
    spec = {"kind": "span", "text": "question", "text_pair": "context", "label": "answers", "id": "id"}
    return {"file": "t.parquet", "max_length": 48, "stride": 8, "protect_question": True, **spec}


def translation(folder):
    records = [{"en": text, "xx": words(number_of(text))} for text in TEXTS]
    write_parquet(folder / "t.parquet", {"translation": records})
    spec = {"kind": "translation", "text": "translation.en", "label": "translation.xx"}
    return {"file": "t.parquet", "max_target_length": 20, **spec}


FILES = {
    make.__name__: make
    for make in (
        csv_file,
        tsv_file,
        jsonl_numbers,
        parquet_shards,
        class_folders,
        pairs,
        regression,
        squad,
        translation,
    )
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for family in ("bert", "marian"):
        build_tiny_backbone(folder / family, family)
    return folder


def digest(value):
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


def plain(batch):
    return {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in sorted(batch.items())}


def trained_on(data, seed, rank, world):
    """Two epochs of one process."""
    loader = StepLoader(data.split("train"), 4, seed, rank=rank, world=world)
    return [plain(batch) for _ in range(2) for batch in loader]


def described(data):
    """What the module gives, as a few short values."""
    splits = {name: data.split(name) for name in ("train", *data.validation_splits, "test")}
    return {
        "names": data.label_names,
        "dropped": data.dropped,
        "rows": {name: [len(split), split.judged, split.truncated] for name, split in splits.items()},
        "tokens": {name: int(split.lengths.sum()) for name, split in splits.items()},
        "fingerprint": data.fingerprint[:16],
        "evaluated": {name: digest([plain(batch) for batch in data.loader(name)]) for name in splits},
        "trained": {
            f"seed {seed}, rank {rank} of {world}": digest(trained_on(data, seed, rank, world))
            for seed in (1, 2)
            for rank, world in ((0, 1), (0, 2), (1, 2))
        },
    }


def module_of(folder, models, make, **keys):
    task = {"name": "frozen", "max_length": 24, **make(folder)}
    task |= {key: str(folder / task[key]) for key in ("file", "validation_file") if key in task}
    spec = TaskSpec.from_config(task)
    family = "marian" if task.get("kind") == "translation" else "bert"
    settings = {**SIZES, "seed": 1, "cache_dir": folder / "cache", **keys}
    data = TokenPruningDataModule(spec, find_task(spec, {}), models / family, **settings)
    data.setup()
    return data


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", ["in memory", "on disk"])
def test_batches_are_those_of_before(name, kept, models, tmp_path, monkeypatch):
    if kept == "on disk":
        monkeypatch.setattr("prunekit.data.store.SMALL", 0)
        for limit, few in {"SMALL": 0, "BLOCK": 7, "BUCKET": 5}.items():
            monkeypatch.setattr(f"prunekit.data.spill.{limit}", few)
    found = described(module_of(tmp_path, models, FILES[name]))
    assert json.loads(json.dumps(found)) == json.loads(STORED.read_text())[name]


def test_some_of_the_rows_are_those_of_before(models, tmp_path):
    limited = described(module_of(tmp_path, models, csv_file, train_rows=20, eval_rows=6, seed=3))
    assert json.loads(json.dumps(limited)) == json.loads(STORED.read_text())["csv_file, 20 and 6 rows"]


def test_rows_of_a_length_are_those_of_before(models, tmp_path):
    keys = {"train_band": [0, "median"], "eval_bands": [0, "median", "max"]}
    data = module_of(tmp_path, models, pairs, **keys)
    found = described(data) | {"bands": [[len(part), part.fingerprint[:16]] for _, part in data.bands]}
    assert json.loads(json.dumps(found)) == json.loads(STORED.read_text())["pairs in bands"]


def test_a_second_reading_gives_the_same(models, tmp_path):
    first, second = (described(module_of(tmp_path, models, squad)) for _ in range(2))
    assert first == second


def test_the_source_is_the_file(models, tmp_path):
    assert module_of(tmp_path, models, csv_file).source == TaskSource("file", str(tmp_path / "t.csv"))
