"""Whole runs that prune a reranker without labels: the query is kept, the document is pruned."""

import csv
import itertools

import pytest
from support.folders import classifier_folder, edit_json

import prunekit
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.config.identity import config_hash
from prunekit.data.synthetic import FILLERS
from prunekit.pipelines.run import run
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical
from prunekit.tokens.encoder import encoder_of

SEP = 3
SMALL = [
    "task=csv",
    "task.label=null",
    "task.text=query",
    "task.text_pair=document",
    "task.group=query",
    "task.max_length=40",
    "trainer=debug",
    "trainer.epochs=1",
    "plots=false",
    "logger.wandb.enabled=false",
    "bench.enabled=false",
    "budget=1.5x",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A reranker in `reranker`, and pairs of 8 queries with 12 documents each in pairs.csv."""
    folder = tmp_path_factory.mktemp("rerank")
    classifier_folder(folder / "reranker", names=("score",))
    edit_json(
        folder / "reranker/config.json", sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"}
    )
    words = itertools.cycle(FILLERS)
    rows = [
        (f"{FILLERS[query]} {FILLERS[query + 1]}", " ".join(itertools.islice(words, 9 + number)))
        for query in range(8)
        for number in range(12)
    ]
    for name, chosen in (("pairs.csv", rows), ("long.csv", [*rows, (" ".join(FILLERS * 2), "a text")])):
        with (folder / name).open("w", newline="") as stream:
            csv.writer(stream).writerows([("query", "document"), *chosen])
    return folder


def config(place, *more, file="pairs.csv"):
    own = [f"model={place / 'reranker'}", f"task.file={place / file}", "task.validation_fraction=0.3"]
    own += [f"runs_dir={place / 'runs'}", f"data.cache_dir={place / 'cache'}"]
    return compose([*SMALL, *own, *more])[0]


@pytest.fixture(scope="module")
def topk(place):
    cfg = config(place, "method=topk")
    return run(cfg), RunFolder.of(canonical(cfg)).path


def test_the_query_is_kept_the_budget_met_and_rankings_are_compared(topk, place):
    result, path = topk
    assert result.budget.met
    assert set(result.score.pruned_all) == {"spearman", "kendall", "overlap@10"}
    assert result.score.dense == pytest.approx(1)
    engine = prunekit.load(path, engine="packed")
    query, document = f"{FILLERS[0]} {FILLERS[1]}", " ".join(FILLERS[:14])
    ids = engine.tokenizer(query, document)["input_ids"]
    first = ids.index(SEP) + 1
    for layer in engine([(query, document)]).kept[:-1]:  # the last one computes [CLS] alone
        assert set(range(first)) <= set(layer[0])
    assert first < len(engine([(query, document)]).kept[-2][0]) < len(ids)
    assert encoder_of(prunekit.load(path)).separator == SEP
    assert [row["corpus_id"] for row in engine.rank(query, [document, "a text"], top_k=1)] in ([0], [1])


def test_protection_is_the_default_of_a_reranker_with_pairs_alone(place):
    assert canonical(config(place, "method=topk"))["protect"] == "first_segment"
    assert canonical(config(place, "method=topk", "protect=none"))["protect"] == "none"
    one_text = canonical(config(place, "method=topk", "task.text_pair=null"))
    assert one_text["protect"] is None
    assert canonical(canonical(config(place, "method=topk", "protect=none")))["protect"] == "none"
    plain = compose(["method=topk", "task=mrpc", "protect=none"])[0]
    assert canonical(plain)["protect"] is None
    hashes = {config_hash(canonical(config(place, "method=topk", *more))) for more in ([], ["protect=none"])}
    hashes.add(config_hash(canonical(config(place, "method=topk", "protect=first_segment"))))
    assert len(hashes) == 2  # what is the default is one run, typed or not


@pytest.mark.parametrize(
    ("more", "file", "message"),
    [
        (["protect=first_segment", "task.text_pair=null"], "pairs.csv", "reads one text at a time"),
        (["task.max_length=16"], "long.csv", "leaves none of task.max_length=16 for the second"),
        (["budget=6x"], "pairs.csv", "budget=6x cannot be met"),
        (["task.metrics=[spearman,overlap@10]", "task.group=null"], "pairs.csv", "has more than"),
    ],
)
def test_what_leaves_no_room_is_refused_before_training(place, more, file, message):
    with pytest.raises(ConfigError, match=message):
        run(config(place, "method=topk", *more, file=file))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["first", "random", "threshold", "ltp", "lat", "top", "tsdtp", "dtp"],
)
def test_every_method_keeps_the_query(place, method):
    own = {"lat": ["method.iterations=1", "method.population=4"]}.get(method, [])
    cfg = config(place, f"method={method}", "budget=1.3x", *own)
    run(cfg)
    engine = prunekit.load(RunFolder.of(canonical(cfg)).path, engine="packed")
    query, document = f"{FILLERS[0]} {FILLERS[1]}", " ".join(FILLERS[:14])
    first = engine.tokenizer(query, document)["input_ids"].index(SEP) + 1
    for layer in engine([(query, document)]).kept[:-1]:
        assert set(range(first)) <= set(layer[0])
