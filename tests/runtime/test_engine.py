"""The packed engine equals the mask path: the same kept tokens and logits, whatever the backend or the batch."""

import gc
import re
import warnings
import weakref

import pytest
import torch
from support.decisions import DECISIONS, LENGTHS, batch_of, masked
from support.families import FAMILIES
from support.folders import classifier_folder, edit_json
from support.models import sentences, tiny_model
from support.paths import ROOT

import prunekit
from prunekit.data.encoding import load_tokenizer
from prunekit.models.heads import Head, logits_of
from prunekit.models.loading import load_classifier
from prunekit.models.pretrained import save
from prunekit.models.tiny import build_tiny_backbone
from prunekit.runtime.engine import PackedEngine
from prunekit.runtime.inputs import round_up, row_counts
from prunekit.runtime.kernels.attention import Plan, attend, attend_from_first
from prunekit.runtime.kernels.linears import (
    FloatInt8Linear,
    Int8Linear,
    OneDnnInt8Linear,
    OneDnnLinear,
    TorchLinear,
    choose,
    is_correct,
    quantise,
)
from prunekit.runtime.kernels.native import (
    NativeAttention,
    NativeRounding,
    _balanced_ranges,
    _equal_ranges,
    library,
    native_attention,
    native_rounding,
)
from prunekit.tokens.encoder import encoder_of, install
from prunekit.tokens.packing import Packing

# every decision on one family, and every family with a decision that needs few signals and one that needs many
CASES = [("bert", decision) for decision in DECISIONS]
CASES += [(family, decision) for family in FAMILIES[1:] for decision in ("ratio", "task attention")]


@pytest.mark.parametrize("backends", ["auto", "torch"])
@pytest.mark.parametrize(("family", "decision"), CASES)
def test_the_engine_keeps_the_tokens_of_the_mask_path_and_gives_its_logits(family, decision, backends):
    model = install(tiny_model(family), DECISIONS[decision]())
    batch = batch_of(model)
    logits, kept, trace = masked(model, batch)
    engine = PackedEngine(model, linears=backends, attention=backends, cls_last=False)
    result = engine(batch)
    assert result.kept == kept
    assert torch.equal(result.trace.tokens_in, trace.tokens_in)
    assert torch.equal(result.trace.tokens_out, trace.tokens_out)
    torch.testing.assert_close(result.logits, logits, atol=1e-4, rtol=0)
    if decision != "nothing":
        assert trace.tokens_out[-1].sum() < sum(LENGTHS)  # something was pruned


@pytest.fixture
def saved(tmp_path):
    model = install(tiny_model(), DECISIONS["gates"]())
    save(model, None, tmp_path / "model")
    return model, tmp_path / "model"


def test_load_returns_the_engine_if_asked_for(saved):
    model, folder = saved
    batch = batch_of(model)
    engine = prunekit.load(folder, engine="packed")
    assert isinstance(engine, PackedEngine)
    torch.testing.assert_close(engine(batch).logits, masked(model, batch)[0], atol=1e-4, rtol=0)
    assert not isinstance(prunekit.load(folder), PackedEngine)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"engine": "fast"}, ValueError, "engine='fast' is unknown; choose one of hf, packed"),
        ({"dtype": "bf16"}, TypeError, "no option dtype for engine='hf'"),
        ({"engine": "packed", "execution": "mask"}, TypeError, "no execution for engine='packed'"),
        ({"engine": "packed", "dtype": "fp8"}, ValueError, "dtype='fp8' is unknown; choose one of fp32, bf16, int8"),
        ({"engine": "packed", "threads": 0}, ValueError, "threads=0 is not a number of threads"),
        (
            {"engine": "packed", "attention": "flash"},
            ValueError,
            "attention='flash' is unknown; choose one of",
        ),
        ({"engine": "packed", "linears": "int8"}, ValueError, "choose one of auto, onednn, torch"),
    ],
)
def test_load_refuses_unknown_options(saved, given, kind, message):
    with pytest.raises(kind, match=message):
        prunekit.load(saved[1], **given)


# -- a result depends only on its own sentence --------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_a_batch_equals_its_texts_one_by_one(dtype):
    model = install(tiny_model(), DECISIONS["threshold"]())
    engine = PackedEngine(model, dtype=dtype)
    batch = batch_of(model)
    texts = [row[mask > 0].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    together = engine(texts)
    for row, text in enumerate(texts):
        alone = engine([text])
        torch.testing.assert_close(
            alone.logits[0], together.logits[row], atol=1e-5 if dtype == "fp32" else 2e-2, rtol=0
        )
        assert [layer[0] for layer in alone.kept] == [layer[row] for layer in together.kept]


def test_every_computed_number_of_rows_is_among_those_compiled_in_advance():
    assert row_counts(40) == [4, 8, 12, 16, 20, 24, 28, 32, 40]
    assert {round_up(rows, 5) for rows in range(1, 2000)} == set(row_counts(1999))


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_warming_an_engine_changes_no_result(dtype):
    model = install(tiny_model(), DECISIONS["ratio"]())
    batch = sentences(LENGTHS)
    cold, warm = PackedEngine(model, dtype=dtype)(batch), PackedEngine(model, dtype=dtype).warm(64)(batch)
    assert torch.equal(cold.logits, warm.logits)
    assert cold.kept == warm.kept


def test_an_int8_row_is_quantised_independently_of_the_others():
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(8, 16, generator=generator), torch.randn(5, 16, generator=generator)
    for backend in (Int8Linear, OneDnnInt8Linear, FloatInt8Linear):
        linear = backend(weight, None, "int8")
        with_an_outlier = torch.cat([rows, rows[:1] * 1000])
        assert torch.equal(linear(with_an_outlier)[:5], linear(rows))
        torch.testing.assert_close(linear(rows), rows @ weight.T, atol=0.1, rtol=0)


def test_padding_order_and_dummy_rows_change_nothing():
    model = install(tiny_model(), DECISIONS["ratio"]())
    engine = PackedEngine(model)
    wide, narrow = sentences(LENGTHS, width=30), sentences(LENGTHS)
    assert torch.equal(engine(wide).logits, engine(narrow).logits)
    back = {name: tensor.flip(0) for name, tensor in narrow.items()}
    torch.testing.assert_close(engine(back).logits.flip(0), engine(narrow).logits, atol=1e-5, rtol=0)


def test_row_counts_are_rounded_up_so_that_few_occur():
    counts = [round_up(rows, 8) for rows in (1, 4, 5, 32, 33, 128, 129, 512, 513)]
    assert counts == [4, 4, 8, 32, 40, 128, 144, 512, 544]
    # a single sentence is rounded only where a few more rows cost nothing
    assert [round_up(rows, 1) for rows in (1, 5, 32, 33, 200)] == [4, 8, 32, 33, 200]
    assert len({round_up(rows, 32) for rows in range(1, 2049)}) == 92


# -- heads and options ---------------------------------------------------------------------------------


@pytest.mark.parametrize("decision", ["ratio", "gates", "nothing"])
def test_computing_the_last_layer_for_the_first_token_only_changes_no_logit(family, decision):
    model = install(tiny_model(family), DECISIONS[decision]())
    batch = batch_of(model)
    result, whole = PackedEngine(model)(batch), PackedEngine(model, cls_last=False)(batch)
    torch.testing.assert_close(result.logits, whole.logits, atol=1e-5, rtol=0)
    assert result.kept[:-1] == whole.kept[:-1]
    assert result.kept[-1] == [[0]] * len(LENGTHS)
    assert torch.equal(result.trace.tokens_in, whole.trace.tokens_in)


def test_a_first_token_that_may_be_dropped_is_never_computed_separately():
    model = install(tiny_model(), DECISIONS["threshold, nothing protected"]())
    engine = PackedEngine(model)
    assert not engine.cls_last
    batch = batch_of(model)
    logits, kept, _ = masked(model, batch)
    assert any(0 not in positions for positions in kept[-1])  # one was dropped
    torch.testing.assert_close(engine(batch).logits, logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("decision", ["ratio", "threshold, nothing protected"])
def test_question_answering_reads_every_token(family, decision):
    model = install(tiny_model(family, head="QuestionAnswering", classes=2), DECISIONS[decision]())
    batch = batch_of(model)
    with torch.no_grad():
        expected = logits_of(model(**batch, execution="mask"), batch)
    result = PackedEngine(model)(batch)
    assert result.labels is None
    torch.testing.assert_close(result.logits, expected, atol=1e-4, rtol=0)


def test_protected_tokens_are_kept_and_token_types_are_read():
    model = install(tiny_model(), DECISIONS["ratio"]())
    batch = batch_of(model)
    marked = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
    marked[0, 10:14] = True
    types = (torch.arange(20) > 8).long().expand(len(LENGTHS), -1) * batch["attention_mask"]
    given = {**batch, "protected": marked, "token_type_ids": types}
    logits, kept, _ = masked(model, {**batch, "token_type_ids": types}, protected=marked)
    result = PackedEngine(model, cls_last=False)(given)
    assert result.kept == kept
    assert {10, 11, 12, 13} <= set(result.kept[-1][0])
    torch.testing.assert_close(result.logits, logits, atol=1e-4, rtol=0)


def test_without_pruning_the_engine_is_the_dense_model():
    model = install(tiny_model(), DECISIONS["ratio"]())
    batch = batch_of(model)
    with torch.no_grad():
        dense = model(**batch, execution="dense").logits
    result = PackedEngine(model)(batch, prune=False)
    torch.testing.assert_close(result.logits, dense, atol=1e-5, rtol=0)
    assert [len(positions) for positions in result.kept[0]] == LENGTHS


def test_an_activation_that_onednn_does_not_have_is_computed_after_the_product():
    model = tiny_model()
    for layer in model.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.SiLU()
    model = install(model, DECISIONS["ratio"]())
    batch = batch_of(model)
    torch.testing.assert_close(PackedEngine(model)(batch).logits, masked(model, batch)[0], atol=1e-4, rtol=0)


# -- texts ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_backbone(folder)
    model = install(load_classifier(folder, labels=["sport", "trade"]).eval(), DECISIONS["ratio"]())
    model_folder = tmp_path_factory.mktemp("model") / "model"
    save(model, AutoTokenizer.from_pretrained(folder), model_folder)
    return model_folder


def test_texts_pairs_and_ids_get_labels(with_tokenizer):
    from transformers import AutoTokenizer

    engine = prunekit.load(with_tokenizer, engine="packed")
    model, tokenizer = prunekit.load(with_tokenizer), AutoTokenizer.from_pretrained(with_tokenizer)
    texts = ["the match ended in a draw", "shares fell", "a"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    result = engine(texts)
    torch.testing.assert_close(result.logits, logits, atol=1e-4, rtol=0)
    assert result.labels == [["sport", "trade"][best] for best in logits.argmax(-1).tolist()]
    ids = [row[mask > 0].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert torch.equal(engine(ids).logits, result.logits)
    torch.testing.assert_close(engine(texts[0]).logits[0], result.logits[0], atol=1e-5, rtol=0)
    with torch.no_grad():
        pair = model(**tokenizer([("the match", "a draw")], return_tensors="pt")).logits
    torch.testing.assert_close(engine([("the match", "a draw")]).logits, pair, atol=1e-4, rtol=0)


def test_the_example_of_the_documentation_runs(with_tokenizer, capsys):
    page = ROOT / "docs" / "runtime.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    exec(block, {"folder": with_tokenizer})
    assert "torch.Size([2, 2])" in capsys.readouterr().out


def test_a_long_text_is_cut_and_too_many_token_ids_are_refused(with_tokenizer):
    engine = prunekit.load(with_tokenizer, engine="packed")
    most = engine.most_tokens
    assert engine("a " * 2 * most).trace.tokens_in[0].tolist() == [most]
    with pytest.raises(ValueError, match=rf"text 1 has {most + 1} tokens; this model takes 1 to {most}"):
        engine([[5, 6], [5] * (most + 1)])


def test_a_text_is_cut_where_it_was_in_training(with_tokenizer, tmp_path):
    from prunekit.models.pretrained import load_hf

    model = load_hf(with_tokenizer)
    save(model, load_tokenizer(with_tokenizer), tmp_path / "model", max_length=20)
    engine = prunekit.load(tmp_path / "model", engine="packed")
    assert engine("a " * 60).trace.tokens_in[0].tolist() == [20]
    assert engine([[5] * 30]).trace.tokens_in[0].tolist() == [30]
    longer = prunekit.load(tmp_path / "model", engine="packed", max_length=40)
    assert longer("a " * 60).trace.tokens_in[0].tolist() == [40]


@pytest.mark.parametrize("said", [10**30, 600])
def test_a_tokenizer_without_a_longest_text_has_that_of_the_model(tmp_path, said):
    folder = classifier_folder(tmp_path / "m", family="roberta")
    edit_json(folder / "tokenizer_config.json", model_max_length=said)
    engine = prunekit.load(folder, engine="packed")
    assert engine.most_tokens == 513
    assert engine("a " * 700).trace.tokens_in[0].tolist() == [513]


def test_a_dense_model_of_transformers_is_packed(tmp_path, family):
    folder = tmp_path / "m"
    model = tiny_model(family)
    model.save_pretrained(folder)
    batch = batch_of(model)
    with torch.no_grad():
        expected = model(**batch).logits
    engine = prunekit.load(folder, engine="packed")
    torch.testing.assert_close(engine(batch).logits, expected, atol=1e-4, rtol=0)
    assert engine(batch).answers.names == tuple(model.config.id2label.values())


def test_a_pruned_model_whose_settings_are_gone_is_not_packed_unpruned(with_tokenizer, tmp_path):
    import shutil

    shutil.copytree(with_tokenizer, tmp_path / "m")
    (tmp_path / "m" / "prunekit.json").unlink()
    with pytest.raises(ValueError, match=r"has prunekit\.safetensors but no prunekit\.json"):
        prunekit.load(tmp_path / "m", engine="packed")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        prunekit.load(tmp_path / "nowhere", engine="packed")


def test_more_tokens_than_embeddings_are_refused_before_a_text_comes(tmp_path):
    folder = classifier_folder(tmp_path / "m")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"a tokenizer with \d+ tokens, but embeddings of \d+"):
        prunekit.load(folder, engine="packed")


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert"])
def test_a_padding_token_inside_a_text_is_read_as_the_model_reads_it(family):
    model = install(tiny_model(family), DECISIONS["ratio"]()).eval()
    pad = model.config.pad_token_id
    texts = [[5, 6, pad, 7, 8, 9], [pad, 5, pad, pad, 6], [7, 8, 9, pad], [11, 12]]
    engine = PackedEngine(model)
    result = engine(texts)
    for row, ids in enumerate(texts):
        with torch.no_grad():
            alone = model(
                input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(), execution="mask"
            )
        torch.testing.assert_close(result.logits[row], alone.logits[0], atol=1e-4, rtol=0)


def test_invalid_inputs_are_refused():
    engine = PackedEngine(install(tiny_model(), None))
    left = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    with pytest.raises(ValueError, match=r"set tokenizer\.padding_side='right'"):
        engine(left)
    with pytest.raises(ValueError, match="given no text"):
        engine([])
    with pytest.raises(ValueError, match="has no tokenizer"):
        engine(["a text"])
    with pytest.raises(ValueError, match="text 0 has 0 tokens"):
        engine({"input_ids": torch.zeros(1, 3).long(), "attention_mask": torch.zeros(1, 3).long()})


def test_regression_has_no_labels():
    engine = PackedEngine(install(tiny_model(classes=1), None))
    result = engine([[5, 6, 7]])
    assert result.logits.shape == (1, 1)
    assert result.labels is None


def test_an_unsupported_head_is_refused():
    with pytest.raises(ValueError, match=r"BertForMaskedLM has a head .* use engine='hf'"):
        PackedEngine(install(tiny_model(head="MaskedLM"), None))


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"in training mode, .* call model\.eval\(\)\.cpu\(\) first"):
        PackedEngine(install(tiny_model(), None).train())


def test_threads_are_set_only_during_the_call():
    seen = []
    engine = PackedEngine(install(tiny_model(), None), threads=2)
    head = engine.head.logits
    engine.head = Head(lambda hidden: (seen.append(torch.get_num_threads()), head(hidden))[1], "first")
    engine([[5, 6, 7]])
    assert (seen, torch.get_num_threads()) == ([2], 1)


def test_the_engine_does_not_keep_the_model_alive():
    model = install(tiny_model(), DECISIONS["ratio"]())
    layer = weakref.ref(encoder_of(model).blocks[0])
    engine = PackedEngine(model)
    del model
    gc.collect()
    assert layer() is None
    engine([[5, 6, 7]])


# -- backends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.15), ("int8", 0.15)])
def test_lower_precision_predicts_the_same_labels_where_they_are_clear(dtype, tolerance):
    """Logits of these models are around 1 to 3; a label is clear if the best leads by twice the tolerance."""
    agree = clear = 0
    for seed in range(4):
        model = install(tiny_model(seed=seed), DECISIONS["ratio"]())
        batch = sentences([20, 13, 7, 9, 20, 3, 11, 16], seed=seed)
        logits = masked(model, batch)[0]
        best = logits.topk(2, -1).values
        sure = best[:, 0] - best[:, 1] > 2 * tolerance
        result = PackedEngine(model, dtype=dtype)(batch)
        agree += int((result.logits.argmax(-1) == logits.argmax(-1))[sure].sum())
        clear += int(sure.sum())
        dense = model(**batch, execution="dense").logits
        assert (PackedEngine(model, dtype=dtype)(batch, prune=False).logits - dense).abs().max() < tolerance
    assert clear >= 20
    assert agree >= 0.95 * clear


def native_or_skip():
    native = native_attention()
    if native is None:
        pytest.skip("no C++ compiler here: attention is torch's")
    return native


@pytest.mark.parametrize(("heads", "size"), [(3, 20), (12, 32), (1, 64), (2, 8)])
def test_native_attention_equals_torchs(heads, size):
    native = native_or_skip()
    generator = torch.Generator().manual_seed(0)
    packing = Packing.of([9, 1, 40, 16, 17, 33, 3], torch.device("cpu"))
    rows = torch.randn(round_up(119, 7), 3 * heads * size, generator=generator)
    needs = frozenset({"received"})
    mixed, signals = attend(rows, heads, Plan(packing, len(rows), native), needs)
    expected, expected_signals = attend(rows, heads, Plan(packing, len(rows)), needs)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(signals.received, expected_signals.received, atol=1e-5, rtol=0)
    assert not mixed[119:].any()


@pytest.mark.parametrize(("kind", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_native_attention_of_first_tokens_only_equals_torchs(kind, allowed):
    native = native_or_skip()
    generator = torch.Generator().manual_seed(0)
    packing = Packing.of([9, 1, 40, 16, 3], torch.device("cpu"))
    query, kv = (torch.randn(shape, generator=generator).to(kind) for shape in ((5, 60), (69, 120)))
    expected = attend_from_first(query, kv, 3, packing)
    torch.testing.assert_close(attend_from_first(query, kv, 3, packing, native), expected, atol=allowed, rtol=0)


def test_native_attention_of_a_sentence_is_bit_for_bit_the_same_in_any_batch_and_on_any_number_of_threads():
    native = native_or_skip()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300 + 290 + 7, 3 * 64, generator=generator)
    packing = Packing.of([300, 290, 7], torch.device("cpu"))
    together, received = native(rows, 4, packing, scored=True)
    alone, own = native(rows[300:590], 4, Packing.of([290], torch.device("cpu")), scored=True)
    assert torch.equal(together[300:590], alone)
    assert torch.equal(received[1, :290], own[0])
    torch.set_num_threads(2)
    try:
        assert len(_balanced_ranges([2 * 64 * length**2 for length in packing.lengths])) == 2
        threaded = native(rows, 4, packing, scored=True)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(threaded[0], together)
    assert torch.equal(threaded[1], received)


@pytest.mark.parametrize("fault", ["no compiler", "a compiler that fails", "a wrong result"])
def test_without_native_attention_the_engine_uses_torchs(monkeypatch, tmp_path, fault):
    if fault == "no compiler":
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    if fault == "a compiler that fails":
        monkeypatch.setenv("CXX", "false")
    if fault == "a wrong result":
        native_or_skip()
        nothing = torch.zeros(100, 60), torch.zeros(5, 70)
        monkeypatch.setattr(NativeAttention, "__call__", lambda *given, scored: nothing)
    for cached in (library, native_attention):
        cached.cache_clear()
    try:
        model = install(tiny_model(), DECISIONS["ratio"]())
        engine = PackedEngine(model)
        assert engine.fused is None
        assert engine([[5, 6, 7]]).logits.shape == (1, 3)
        with pytest.raises(ValueError, match="attention='native' could not be built here"):
            PackedEngine(model, attention="native")
    finally:
        for cached in (library, native_attention):
            cached.cache_clear()


# the two preferred backends with int8 instructions, and without
INT8 = (Int8Linear, OneDnnInt8Linear) if torch.cpu._is_vnni_supported() else (OneDnnInt8Linear, FloatInt8Linear)


@pytest.mark.parametrize(
    ("dtype", "best", "rest", "part"),
    [("fp32", OneDnnLinear, TorchLinear, "__call__"), ("int8", *INT8, "product")],
)
@pytest.mark.parametrize("fault", ["wrong", "absent"])
def test_a_backend_that_does_not_work_is_replaced(monkeypatch, dtype, best, rest, part, fault):
    assert choose(dtype) is best

    def broken(self, rows, residual=None):
        if fault == "absent":
            raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")
        return torch.zeros(len(rows), 48)

    monkeypatch.setattr(best, part, broken)
    is_correct.cache_clear()
    try:
        assert choose(dtype) is rest
        with pytest.raises(ValueError, match=f"gives wrong {dtype} results on this machine"):
            choose(dtype, best.name)
    finally:
        is_correct.cache_clear()


@pytest.mark.parametrize("width", [384, 37, 5])
def test_native_quantisation_equals_torchs(width):
    native_or_skip()
    rows = 3 * torch.randn(7, width, generator=torch.Generator().manual_seed(0))
    rows[2] = 0
    for native, plain in zip(native_rounding().quantise(rows), quantise(rows), strict=True):
        assert torch.equal(native, plain)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_spoils_its_row_in_int8_too(bad):
    rows = torch.ones(3, 40)
    rows[1, 3] = rows[2, 39] = bad
    products = choose("int8")(torch.ones(5, 40), None, "int8")(rows)
    assert products[0].tolist() == pytest.approx([40.0] * 5)
    assert products[1:].isnan().all()


def test_int8_is_the_same_on_two_threads_as_on_one():
    generator = torch.Generator().manual_seed(0)
    rows, linear = torch.randn(701, 384, generator=generator), choose("int8")(torch.eye(384), None, "int8")
    alone = linear(rows)
    torch.set_num_threads(2)
    try:
        assert _equal_ranges(701, 384 * 16) == [(0, 350), (350, 701)]
        assert torch.equal(linear(rows), alone)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("backend", INT8)
@pytest.mark.parametrize("activation", [None, torch.nn.GELU(), torch.nn.GELU("tanh"), torch.nn.ReLU()])
def test_the_passes_around_an_int8_product_are_the_same_in_torch(monkeypatch, backend, activation):
    generator = torch.Generator().manual_seed(0)
    weight, bias, rows = (torch.randn(shape, generator=generator) for shape in ((50, 32), (50,), (9, 32)))
    residual = None if activation else torch.randn(9, 50, generator=generator)
    native = backend(weight, bias, "int8", activation)
    monkeypatch.setattr("prunekit.runtime.kernels.native.native_rounding", lambda: None)
    plain = backend(weight, bias, "int8", activation)
    assert (native.native is None) == (native_rounding() is None)
    torch.testing.assert_close(native(rows, residual), plain(rows, residual), atol=2e-5, rtol=0)


@pytest.mark.parametrize("part", ["quantise", "finish_"])
def test_native_rounding_with_wrong_results_is_not_used(monkeypatch, part):
    native_or_skip()
    correct = getattr(NativeRounding, part)

    def wrong(self, *given, **named):
        result = correct(self, *given, **named)
        (result if part == "finish_" else result[1])[-1] *= 2
        return result

    monkeypatch.setattr(NativeRounding, part, wrong)
    native_rounding.cache_clear()
    try:
        assert native_rounding() is None
        assert Int8Linear(torch.ones(4, 8), None, "int8").native is None
    finally:
        native_rounding.cache_clear()


def test_int8_in_a_float32_product_gives_the_same_results(monkeypatch):
    """oneDNN's weights are coarser where it lacks instructions; with the same coarse weights, so are the others'."""
    model = install(tiny_model(), DECISIONS["ratio"]())
    batch = batch_of(model)

    def run(name):
        return PackedEngine(model, dtype="int8", linears=name)(batch)

    for name, most in (("int8", 127), ("onednn", OneDnnInt8Linear.max_weight())):
        monkeypatch.setattr(FloatInt8Linear, "max_weight", classmethod(lambda cls, most=most: most))
        one, other = run(name), run("torch")
        assert one.kept == other.kept
        torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=0)


def test_products_of_the_largest_integers_are_exact():
    """The sum of two products of 255 x 64 fits into the 16 bits of AVX2; that of 255 x 127 does not."""
    rows, weight = torch.full((3, 64), 3.0), torch.tensor([[1.0] * 64, [-1.0] * 64])
    linear = OneDnnInt8Linear(weight, None, "int8")
    torch.testing.assert_close(linear(rows), torch.tensor([[192.0, -192.0]] * 3))
    torch.testing.assert_close(linear(-rows), torch.tensor([[-192.0, 192.0]] * 3))


def test_a_precision_that_the_processor_lacks_is_warned_about(monkeypatch):
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            PackedEngine(install(tiny_model(), None), dtype="bf16")
            PackedEngine(install(tiny_model(), None), dtype="fp32")
        expected = [] if able else ["dtype='bf16': this processor has no instructions"]
        assert [str(warning.message).partition(" for it")[0] for warning in caught] == expected
