"""An embedder that people bring is pruned: its vectors are learned, and scores of pairs judge where there are some."""

import json
import shutil

import numpy as np
import pytest
import torch
from support.folders import classifier_folder, edit_tensors, embedder_folder

import prunekit
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.data.encoding import VectorTargets
from prunekit.data.synthetic import MARKERS
from prunekit.pipelines.run import run, train
from prunekit.pipelines.tokens import preparation
from prunekit.pipelines.tokens.teacher import Teacher
from prunekit.runs.identity import canonical, model_digest

pytest.importorskip("sentence_transformers")


def config(folder, *given):
    return compose(
        [
            *("task=csv", "trainer=debug", "plots=false", "bench.enabled=false", "logger=[]", "examples=0"),
            *("method=topk", "budget=1.5x", "trainer.max_steps=2", "trainer.epochs=1", "task.max_length=64"),
            *(f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}", *given),
        ]
    )[0]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return embedder_folder(tmp_path_factory.mktemp("models") / "my_model", dense=8)


@pytest.fixture
def own(original, tmp_path):
    return shutil.copytree(original, tmp_path / "my_model")


def pairs(tmp_path):
    """A table of 40 pairs with scores; of every second pair both texts are the same."""
    rows = [
        f"{MARKERS[row % 9]} word {row},{MARKERS[(row + row % 2) % 9]} word {row},{5 - 4 * (row % 2)}"
        for row in range(40)
    ]
    (tmp_path / "t.csv").write_text("text,other,score\n" + "\n".join(rows) + "\n")
    return tmp_path / "t.csv"


def of_pairs(tmp_path):
    return [f"task.file={pairs(tmp_path)}", "task.text_pair=other", "task.label=score"]


def test_vectors_of_pairs_are_learned_and_judged_by_their_scores(own, tmp_path):
    result = run(config(tmp_path, f"model={own}", *of_pairs(tmp_path)))
    assert result.score.metric == "spearman"
    assert list(result.score.pruned_all) == ["spearman", "cosine", "overlap"]
    dense = result.score.dense_all
    assert (dense["cosine"], dense["overlap"]) == (pytest.approx(1), 1)
    assert dense["spearman"] > 0.5
    assert 0 < result.score.pruned_all["cosine"] < 1
    (folder,) = (tmp_path / "runs").glob("csv/topk/my_model/1.5x/s1-*")
    texts = ["the film was good", "a bad one"]
    vectors = prunekit.load(folder).encode(texts)
    assert vectors.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(prunekit.load(folder, engine="packed").encode(texts), vectors, atol=1e-4)
    assert "encode" in (folder / "model" / "README.md").read_text()


def test_a_pair_is_two_rows_one_after_the_other(own, tmp_path):
    cfg = canonical(config(tmp_path, f"model={own}", *of_pairs(tmp_path)))
    from prunekit.data.module import TokenPruningDataModule
    from prunekit.data.sources import find_task
    from prunekit.data.spec import TaskSpec

    spec = TaskSpec.from_config(cfg["task"])
    data = TokenPruningDataModule(
        spec, find_task(spec), own, batch_size=4, eval_batch_size=4, seed=1, cache_dir=tmp_path / "cache"
    )
    data.setup()
    split = data.split("train")
    assert isinstance(split.targets, VectorTargets)
    assert len(split) == split.judged == 2 * len(split.targets.scores)
    same = [split.row(2 * pair) == split.row(2 * pair + 1) for pair in range(len(split) // 2)]
    assert same == [float(score) == 5 for score in split.targets.scores]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["layers", "truncate"])
def test_baselines_are_judged_alike(own, tmp_path, method):
    given = [f"model={own}", *of_pairs(tmp_path), f"method={method}", "budget=2x", "budget_tolerance=0.2"]
    result = run(config(tmp_path, *given))
    assert list(result.score.pruned_all) == ["spearman", "cosine", "overlap"]
    (folder,) = (tmp_path / "runs").glob("csv/*/my_model/2x/s1-*")
    assert prunekit.load(folder, engine="packed").encode("the film was good").shape == (8,)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["kept", "all"])
def test_texts_without_labels_are_enough(own, tmp_path, pooling):
    table = tmp_path / "t.txt"
    table.write_text("".join(f"{MARKERS[row % 9]} word {row}\n" for row in range(60)))
    result = run(config(tmp_path, f"model={own}", f"task.file={table}", "task.label=null", f"task.pooling={pooling}"))
    assert list(result.score.pruned_all) == ["cosine", "overlap"]
    (folder,) = (tmp_path / "runs").glob("csv/topk/*/*/s1-*")
    assert json.loads((folder / "model" / "config.json").read_text())["pooled_tokens"] == pooling


def test_the_head_s_weights_are_part_of_what_the_model_is(own):
    digests = [model_digest(own, with_head=True), Teacher(own, None).outputs_sha256]
    plain = model_digest(own)
    edit_tensors(own / "2_Dense" / "model.safetensors", lambda found: {name: 2 * t for name, t in found.items()})
    assert model_digest(own) == plain
    assert model_digest(own, with_head=True) != digests[0]
    assert Teacher(own, None).outputs_sha256 != digests[1]


def test_an_evaluation_needs_pairs_with_scores_alone(own, tmp_path, capsys):
    found = prunekit.evaluate(own, file=str(pairs(tmp_path)), text_pair="other", label="score")
    assert list(found.metrics) == ["spearman"]
    assert found.rows == 80


# -- what is refused -------------------------------------------------------------------------------------


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.setattr(preparation, "read_data", lambda run: pytest.fail("data was read"))


def test_a_score_of_one_text_is_refused(own, tmp_path, no_data):
    given = [f"task.file={pairs(tmp_path)}", "task.label=score"]
    with pytest.raises(ConfigError, match=r"task\.label=score with an embedder and one text per row"):
        train(config(tmp_path, f"model={own}", *given))


def test_an_embedder_without_its_pooling_is_no_classifier_either(own, tmp_path, no_data):
    (own / "modules.json").unlink()
    with pytest.raises(ConfigError, match="has no head for text-classification, so it answers nothing"):
        train(config(tmp_path, f"model={own}", f"task.file={pairs(tmp_path)}", "task.label=null"))


def test_weights_that_are_no_numbers_are_refused(own, tmp_path, no_data):
    edit_tensors(own / "2_Dense" / "model.safetensors", lambda found: {n: t * torch.nan for n, t in found.items()})
    with pytest.raises(ConfigError, match="Allowed: finite numbers"):
        train(config(tmp_path, f"model={own}", f"task.file={pairs(tmp_path)}", "task.label=null"))


def test_pooling_means_nothing_to_a_classifier(tmp_path, no_data):
    own = classifier_folder(tmp_path / "classifier")
    given = [f"task.file={pairs(tmp_path)}", "task.label=null", "task.pooling=all"]
    with pytest.raises(ConfigError, match=r"task\.pooling=all with task\.kind=distilled_classification"):
        train(config(tmp_path, f"model={own}", *given))


def test_the_dense_method_learns_nothing_from_itself(own, tmp_path, no_data):
    with pytest.raises(ConfigError, match="method=dense with an embedder: the model would learn its own answers"):
        train(config(tmp_path, f"model={own}", *of_pairs(tmp_path), "method=dense", "budget=null"))
