"""Datasets by name: the hub's, folders laid out as there, folders of save_to_disk, and what is guessed about them."""

import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.data import named
from prunekit.data.errors import DataError
from prunekit.data.guessing import complete_task
from prunekit.data.hub import is_folder
from prunekit.data.named import read_folder, read_hub
from prunekit.data.reading import read_task
from prunekit.data.sources import TaskSource, find_task
from prunekit.data.spec import TaskSpec
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical

NEWS = Features({"text": Value("string"), "label": ClassLabel(names=["World", "Sports"])})
ROWS = {"text": [f"row {number}" for number in range(6)], "label": [0, 1] * 3}


def news(features=NEWS, **columns):
    return Dataset.from_dict(ROWS | columns, features=features)


@pytest.fixture
def hub_layout(tmp_path):
    """Two splits as the hub has them: data/<split>-00000-of-00001.parquet, with the features in the files."""
    folder = tmp_path / "news"
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        news().to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
    return folder


def task(*typed):
    return compose(["method=topk", "task=hub", *typed])[0]["task"]


# -- reading -----------------------------------------------------------------------------------------


def test_a_folder_laid_out_as_on_the_hub(hub_layout, tmp_path):
    splits = read_folder(hub_layout, None, tmp_path)
    assert {name: list(table.columns["label"]) for name, table in splits.items()} == {
        "train": [0, 1] * 3,
        "test": [0, 1] * 3,
    }
    assert splits["train"].classes == {"label": ("World", "Sports")}
    assert splits["test"].at(2) == f"{hub_layout}, test, row 3"


def test_a_subset_is_a_folder_where_there_is_no_card(hub_layout, tmp_path):
    (hub_layout / "data").rename(hub_layout / "small")
    assert set(read_folder(hub_layout, "small", tmp_path)) == {"train", "test"}


def test_folders_of_save_to_disk_with_several_splits_or_one(tmp_path):
    news().save_to_disk(tmp_path / "one")
    DatasetDict({"train": news().select([3, 1]), "dev": news()}).save_to_disk(tmp_path / "two")
    assert list(read_folder(tmp_path / "one", None, tmp_path)["train"].columns["text"]) == ROWS["text"]
    two = read_folder(tmp_path / "two", None, tmp_path)
    assert list(two["train"].columns["text"]) == ["row 3", "row 1"]
    assert set(two) == {"train", "dev"}


def test_such_a_folder_is_an_own_file_too(tmp_path):
    DatasetDict({"train": news(), "validation": news()}).save_to_disk(tmp_path / "two")
    spec = TaskSpec.from_config({"name": "n", "file": str(tmp_path / "two"), "validation_splits": ["validation"]})
    found = read_task(spec, find_task(spec, {}), tmp_path)
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 6, "validation": 6}


def test_files_that_datasets_would_change_are_read_by_our_readers(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.csv").write_text("text,label\nNA,1\nb,1.0\n")
    (tmp_path / "own" / "test.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": true}\n')
    (tmp_path / "own" / "test.jsonl").rename(tmp_path / "test.jsonl")
    table = read_folder(tmp_path / "own", None, tmp_path)["train"]
    assert dict(table.columns) == {"text": ["NA", "b"], "label": ["1", "1.0"]}


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty cannot be loaded: .*\nAllowed: the id of a dataset of the hub"):
        read_folder(tmp_path / "empty", None, tmp_path)


def test_the_hub_is_asked_for_an_id_with_its_subset_and_revision(hub_layout, tmp_path, monkeypatch):
    import datasets

    asked = []

    def instead(function):
        def load(path, subset, *, revision, cache_dir):
            asked.append((path, subset, revision))
            return function(str(hub_layout), cache_dir=cache_dir)

        return load

    for name in ("load_dataset_builder", "load_dataset"):
        monkeypatch.setattr(datasets, name, instead(getattr(datasets, name)))
    spec = TaskSpec.from_config(
        {
            "name": "c",
            "hub": "some/news",
            "hub_config": "small",
            "revision": "abc",
            "test_split": "test",
            "validation_fraction": 0.4,
        }
    )
    found = read_task(spec, TaskSource("hub", "some/news"), tmp_path)
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 4, "validation": 2, "test": 6}
    assert asked == [("hf://datasets/some/news", "small", "abc")] * 2


def test_a_folder_never_takes_the_place_of_a_dataset_of_the_hub(hub_layout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where ./news is
    with pytest.raises(DataError, match=r"^news at main cannot be loaded"):
        read_hub("news", None, "main", tmp_path)
    assert [is_folder(name) for name in ("news", "a/b", "./news", "../news", "/x/news", "~/news")] == [False] * 2 + [
        True
    ] * 4


def test_an_earlier_download_is_read_without_a_network(hub_layout, tmp_path, monkeypatch):
    place = tmp_path / "home/hub/datasets--some--news"
    (place / "snapshots").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text("abc")
    hub_layout.rename(place / "snapshots/abc")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for revision in ("main", "abc", None):
        assert set(read_hub("some/news", None, revision, tmp_path)) == {"train", "test"}
    spec = TaskSpec.from_config({"name": "n", "dataset": "some/news", "revision": "abc"})
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    assert find_task(spec, offline) == TaskSource("hub", "some/news")
    other = TaskSpec.from_config({"name": "n", "dataset": "some/news", "revision": "def"})
    with pytest.raises(ConfigError, match="not in the local cache"):
        find_task(other, offline)


def test_a_dataset_under_the_data_folder_is_used(hub_layout):
    spec = TaskSpec.from_config({"name": "n", "dataset": "owner/news"})
    found = find_task(spec, {"PRUNEKIT_DATA": str(hub_layout.parent), "HF_HUB_OFFLINE": "1"})
    assert found == TaskSource("folder", str(hub_layout))
    with pytest.raises(ConfigError, match=r"Option 1: PRUNEKIT_DATA=<folder that holds owner/others/>"):
        find_task(
            TaskSpec.from_config({"name": "n", "dataset": "owner/others"}),
            {"PRUNEKIT_DATA": str(hub_layout.parent), "HF_HUB_OFFLINE": "1"},
        )


# -- guessing ----------------------------------------------------------------------------------------


def guessed(folder, *typed):
    found = complete_task(task(f"task.dataset={folder}", *typed))
    keys = ("kind", "text", "text_pair", "label", "labels", "validation_splits", "test_split")
    return [found[key] for key in keys]


def write(folder, split, **columns):
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_columns_classes_and_splits_are_read_and_said(hub_layout, capsys):
    assert guessed(hub_layout) == ["classification", "text", None, "label", ["World", "Sports"], [], "test"]
    said = capsys.readouterr().out
    assert said.startswith(
        f"data       {hub_layout}: kind=classification, text=text, label=label (World, Sports); "
        "splits train, test, validation from train"
    )
    guessed(hub_layout)
    assert capsys.readouterr().out == ""  # once


def test_fractions_are_values_and_pairs_are_known(tmp_path):
    folder = write(tmp_path / "a", "train", sentence1=["x", "y"], sentence2=["z", "w"], score=[0.5, 1.25])
    write(folder, "validation", sentence1=["x"], sentence2=["z"], score=[1.0])
    assert guessed(folder) == ["regression", "sentence1", "sentence2", "score", None, ["validation"], None]


def test_the_only_texts_are_the_text(tmp_path):
    folder = write(tmp_path / "a", "train", Ticket=["x", "y"], number=[7, 8], label=[0, 1])
    assert guessed(folder)[:5] == ["classification", "Ticket", None, "label", None]


def test_a_test_whose_labels_are_secret_is_not_used(tmp_path):
    folder = write(tmp_path / "a", "train", text=["x", "y"], label=[0, 1])
    write(folder, "test", text=["x", "y"], label=[-1, -1])
    assert guessed(folder)[-1] is None


def test_what_is_typed_is_not_guessed(hub_layout):
    typed = ["task.text=label", "task.label=text", "task.labels=[a,b]", "task.test_split=train"]
    assert guessed(hub_layout, *typed)[1:5] == ["label", None, "text", ["a", "b"]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": ["x"], "b": ["y"], "label": [1]}, r"which column is the text\.\nAllowed: a, b, label\.\nSet task.text="),
        ({"text": ["x"], "b": [1]}, r"which column is the label\.\nAllowed: text, b\.\nSet task.label="),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(tmp_path, columns, message):
    with pytest.raises(ConfigError, match=message):
        guessed(write(tmp_path / "a", "train", **columns))


def test_a_dataset_without_the_split_is_refused_with_those_that_it_has(hub_layout):
    with pytest.raises(ConfigError, match=r"has no split 'training'; it has train, test\."):
        guessed(hub_layout, "task.train_split=training")


# -- runs --------------------------------------------------------------------------------------------


def test_a_guess_is_the_same_run_as_what_it_guesses_and_so_is_a_copy(hub_layout, tmp_path, monkeypatch):
    def folder(dataset, *typed):
        cfg = canonical(compose(["method=topk", "task=hub", f"task.dataset={dataset}", *typed])[0])
        return RunFolder.of(cfg).path, cfg["task"]["dataset"]

    path, absolute = folder(hub_layout)
    assert absolute == str(hub_layout)
    assert folder(hub_layout, "task.text=text", "task.label=label", "task.test_split=test")[0] == path
    hub_layout.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert folder("./moved") == (path, str(tmp_path / "moved"))
    (Path("moved") / "data/test-00000-of-00001.parquet").unlink()
    news(text=["other"] * 6).to_parquet("moved/data/test-00000-of-00001.parquet")
    assert folder("./moved")[0] != path


def test_lists_and_several_columns_are_several_labels_per_text(tmp_path):
    lists = write(tmp_path / "a", "train", text=["x", "y"], label=[["a"], ["b", "a"]])
    assert guessed(lists)[0] == "multilabel"
    columns = write(tmp_path / "b", "train", text=["x", "y"], joy=[1, 0], fear=[0, 1])
    kind, _, _, label, *_ = guessed(columns, "task.label=[joy,fear]")
    assert (kind, label) == ("multilabel", ["joy", "fear"])


def test_names_of_the_hub_name_the_runs(monkeypatch, hub_layout, tmp_path):
    monkeypatch.setenv("PRUNEKIT_DATA", str(hub_layout.parent))
    found = complete_task(task("task.dataset=owner/news"))
    assert found["name"] == "news"
    assert named.is_saved(tmp_path) is False


def test_lists_of_words_have_labels_for_each(tmp_path, capsys):
    names = ["O", "B-PER"]
    lists = {"id": Value("string"), "tokens": List(Value("string"))}
    features = Features(lists | {name: List(ClassLabel(names=names)) for name in ("pos_tags", "ner_tags")})
    rows = {"id": ["0"], "tokens": [["Peter", "left"]], "pos_tags": [[0, 0]], "ner_tags": [[1, 0]]}
    DatasetDict({"train": Dataset.from_dict(rows, features)}).save_to_disk(tmp_path / "a")
    assert guessed(tmp_path / "a") == ["tokens", "tokens", None, "ner_tags", names, [], None]
    assert "kind=tokens, text=tokens, label=ner_tags (O, B-PER); splits train" in capsys.readouterr().out
    typed = ["task.kind=tokens", "task.text=tokens", "task.label=pos_tags", "task.labels=[B-PER,O]"]
    assert guessed(tmp_path / "a", *typed)[3:5] == ["pos_tags", ["B-PER", "O"]]
