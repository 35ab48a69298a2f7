"""Every head gives one tensor of logits, which losses, teachers and checks treat alike."""

import pytest
import torch
from support.families import FAMILIES
from support.models import sentences, tiny_model
from support.translators import SOURCE, TARGETS, translator

from prunekit.cost import expected_counts, expected_keep, nominal_counts
from prunekit.data.kinds.labelled import CLASSIFICATION
from prunekit.data.kinds.span import SPAN
from prunekit.data.kinds.tokens import TOKENS
from prunekit.data.kinds.translation import TRANSLATION
from prunekit.evaluation import distillation_targets
from prunekit.evaluation.distillation_targets import TeacherOutputs, teacher_outputs
from prunekit.evaluation.equivalence import ExecutionsDifferError, check_executions_agree
from prunekit.evaluation.evaluate import predict
from prunekit.losses import choices, distillation_loss, task_loss
from prunekit.models.heads import CLASSIFIER, MASKED_LOGIT, READER, TAGGER, TRANSLATOR, stored_head
from prunekit.models.loading import load_model, load_stock
from prunekit.models.pretrained import save
from prunekit.runtime.engine import PackedEngine
from prunekit.runtime.loading import load
from prunekit.tokens.encoder import encoder_of, install
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.rank_gates import RankGate
from prunekit.tokens.scorers import AttentionReceived

LENGTHS = [20, 13, 7, 16]


def reader(family="bert", ratios=None):
    shares = {1: 0.6, 2: 0.4, 3: 0.2} if ratios is None else ratios
    model = tiny_model(family, head="QuestionAnswering", classes=2)
    return install(model, TokenPruner(AttentionReceived(), KeepRatio(shares), shares))


def windows():
    batch = sentences(LENGTHS)
    spans = torch.full((*batch["input_ids"].shape, 2), -1)
    for row, length in enumerate(LENGTHS):
        spans[row, 4 : length - 1] = torch.arange(length - 5)[:, None] + torch.tensor([0, 1])
    labels = torch.tensor([[5, 6], [0, 0], [4, 4], [8, 11]])
    return batch | {"spans": spans, "example": torch.arange(4), "index": torch.arange(4), "labels": labels}


def assert_executions_agree(model, batch):
    """`drop` and `pack` keep the tokens of `mask` and give its logits; so says the check of every run, too."""
    masked, trace = predict(model, batch, "mask")
    for execution in ("drop", "pack"):
        other, other_trace = predict(model, batch, execution)
        assert torch.equal(other_trace.tokens_out, trace.tokens_out)
        torch.testing.assert_close(other, masked, atol=1e-4, rtol=0)
    check_executions_agree(model, batch)


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_mask_drop_and_pack_give_the_same_logits_of_every_token(family, protected):
    model, batch = reader(family), windows()
    if protected:
        batch["protected"] = torch.arange(20).expand(4, -1) < 4
    _, trace = predict(model, batch, "mask")
    # a fifth of 20, 13, 7 and 16 tokens; or as many as are protected
    assert trace.tokens_out[-1].tolist() == ([4, 4, 4, 4] if protected else [4, 3, 1, 3])
    assert_executions_agree(model, batch)


def test_a_removed_token_has_the_logits_of_where_it_left():
    # all but [CLS] go at the last layer: what counts for them is the output of the layer before
    model, batch = reader(ratios={3: 0.0}), windows()
    logits, _ = predict(model, batch, "pack")
    dense, _ = predict(model, batch, "dense")
    real = batch["attention_mask"] > 0
    assert not torch.allclose(logits[real], dense[real], atol=1e-2)
    with torch.no_grad():
        states = model.bert.embeddings(batch["input_ids"])
        states = model.bert.encoder(states, real, execution="dense", trace=None).last_hidden_state
        model.bert.encoder.layer = model.bert.encoder.layer[:3]
        before = model.bert.encoder(model.bert.embeddings(batch["input_ids"]), real, prune=False).last_hidden_state
        wanted = model.qa_outputs(before)
    left = real & (torch.arange(20) > 0)
    torch.testing.assert_close(logits[left], wanted[left], atol=1e-5, rtol=0)


def test_padding_begins_and_ends_no_answer():
    logits, _ = predict(reader(), windows(), "mask")
    assert logits.shape == (4, 20, 2)
    assert (logits[1, 13:] == MASKED_LOGIT).all()
    assert (logits[1, :13] > MASKED_LOGIT / 2).all()


# -- losses --------------------------------------------------------------------------------------------


def test_the_loss_is_the_one_that_hugging_face_computes():
    model, batch = tiny_model(head="QuestionAnswering", classes=2), windows()
    inputs = {name: batch[name][:1] for name in ("input_ids", "attention_mask")}  # without padding: theirs counts it
    first, last = batch["labels"][:1].T
    with torch.no_grad():
        output = model(**inputs, start_positions=first, end_positions=last)
    ours = task_loss(torch.stack([output.start_logits, output.end_logits], -1), batch["labels"][:1], SPAN)
    assert float(ours) == pytest.approx(float(output.loss), rel=1e-6)


def test_choices_of_an_answer_are_its_first_and_last_token():
    logits = torch.tensor([[[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]])
    assert choices(logits).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert choices(torch.tensor([[1.0, 2.0]])).tolist() == [[1, 2]]


def test_cross_entropy_and_distillation_by_hand():
    even = torch.zeros(1, 4, 2)
    assert float(task_loss(even, torch.tensor([[0, 3]]), SPAN)) == pytest.approx(1.386294, abs=1e-5)  # ln 4
    sure = even.clone()
    sure[0, 1, 0] = 100.0  # the teacher knows the first token and nothing of the last: ln 4 and 0
    assert float(distillation_loss(even, sure, 1.0)) == pytest.approx(1.386294 / 2, abs=1e-5)
    assert float(distillation_loss(sure, sure, 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_padding_weighs_nothing_in_either_loss():
    narrow, labels = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 1], [2, 2]])
    wide = torch.cat([narrow, torch.full((2, 2, 2), MASKED_LOGIT)], dim=1)
    assert float(task_loss(wide, labels, SPAN)) == pytest.approx(float(task_loss(narrow, labels, SPAN)))
    teacher = torch.cat([narrow.flip(0), torch.full((2, 2, 2), MASKED_LOGIT)], dim=1)
    found = distillation_loss(wide.requires_grad_(), teacher, 2.0)
    assert found.item() == pytest.approx(float(distillation_loss(narrow, narrow.flip(0), 2.0)))
    found.backward()
    assert wide.grad.isfinite().all()
    assert (wide.grad[:, 3:] == 0).all()


def test_a_teacher_s_answers_are_kept_token_by_token(tmp_path):
    model, batch = reader(), windows()
    outputs = teacher_outputs(model, [batch], torch.tensor(LENGTHS))
    outputs.save(tmp_path / "outputs.safetensors")
    again = TeacherOutputs.load(tmp_path / "outputs.safetensors")
    logits, ranks = again.batch(torch.tensor([2, 0]), 25)
    assert (logits.shape, ranks.shape) == ((2, 25, 2), (2, 25))
    dense, _ = predict(model, batch, "dense")
    torch.testing.assert_close(logits[0, :7], dense[2, :7], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[1, :20], dense[0, :20], atol=1e-5, rtol=0)
    assert (logits[0, 7:] == MASKED_LOGIT).all()


# -- checks --------------------------------------------------------------------------------------------


def test_executions_that_choose_other_tokens_are_found(monkeypatch):
    model, batch = reader(), windows()
    logits, trace = predict(model, batch, "mask")
    for change, agrees in ((0.5, False), (5e-4, False), (1e-6, True)):
        other = logits.clone()
        other[0, 0, 0] = logits[0, :, 0].max() + change  # another first token, by so little
        one = logits.clone()
        one[0, 0, 0] = logits[0, :, 0].max() - (0 if change < 1e-5 else change)
        given = iter([(one, trace), (other, trace)])
        monkeypatch.setattr("prunekit.evaluation.equivalence.predict", lambda *args, given=given: next(given))
        if agrees:
            check_executions_agree(model, batch)
        else:
            with pytest.raises(ExecutionsDifferError):
                check_executions_agree(model, batch)


# -- in and out ----------------------------------------------------------------------------------------


def test_a_saved_reader_is_loaded_as_one_pruned_and_plain(tmp_path):
    model, batch = reader(), windows()
    save(model, None, tmp_path)
    assert stored_head(tmp_path) is READER
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        plain, dense = load_stock(tmp_path)(**inputs), model(**inputs, execution="dense")
        pruned, before = load(tmp_path)(**inputs), model(**inputs)
    assert type(load(tmp_path)).__name__ == "BertForQuestionAnswering"
    for name in ("start_logits", "end_logits"):
        real = inputs["attention_mask"] > 0
        torch.testing.assert_close(plain[name][real], dense[name][real], atol=1e-5, rtol=0)
        torch.testing.assert_close(pruned[name], before[name], atol=1e-6, rtol=0)


def test_a_model_with_another_head_is_refused(tmp_path):
    tiny_model(head="QuestionAnswering", classes=2).save_pretrained(tmp_path / "reader")
    tiny_model(classes=3).save_pretrained(tmp_path / "classifier")
    assert stored_head(tmp_path / "classifier") is CLASSIFIER
    with pytest.raises(ValueError, match=r"classifier has a head for text-classification, but the task is question-an"):
        load_model(tmp_path / "classifier", SPAN, None)
    with pytest.raises(ValueError, match=r"reader has a head for question-answering, but the task is text-classific"):
        load_model(tmp_path / "reader", CLASSIFICATION, ["a", "b", "c"])
    assert load_model(tmp_path / "reader", SPAN, None).config.num_labels == 2


# -- what protected tokens cost ------------------------------------------------------------------------


def test_counts_with_protected_tokens_are_those_that_are_executed():
    batch = windows()
    first = torch.tensor([9, 4, 6, 1])  # of 20, 13, 7 and 16 tokens
    batch["protected"] = torch.arange(20) < first[:, None]
    gates = RankGate([1, 2, 3], 4, init_coarse=4.0)
    with torch.no_grad():
        gates.token_loga.copy_(torch.tensor([[4.0, 4, -4, -4], [4, 4, 4, -4], [4, -4, -4, -4]]))
    for policy in (KeepRatio({1: 0.6, 2: 0.4, 3: 0.2}), gates):
        model = install(
            tiny_model(head="QuestionAnswering", classes=2), TokenPruner(AttentionReceived(), policy, [1, 2, 3])
        )
        _, trace = predict(model, batch, "pack")
        tokens_in, tokens_out = policy.counts(torch.tensor(LENGTHS), 4, protected=first)
        assert torch.equal(tokens_in, trace.tokens_in)
        assert torch.equal(tokens_out, trace.tokens_out)
        assert not torch.equal(policy.counts(torch.tensor(LENGTHS), 4)[1], trace.tokens_out)


def test_expected_counts_keep_protected_tokens():
    # 10 tokens, 6 of them protected: half of the other 4 goes
    fine, coarse, lengths = torch.tensor([[1.0, 0.0]]), torch.ones(1), torch.tensor([10])
    for found in (
        expected_counts(fine, coarse, lengths, [0], 1, protected=torch.tensor([6])),
        nominal_counts(expected_keep(fine, coarse), lengths, [0], 1, protected=torch.tensor([6])),
    ):
        assert [count.item() for count in found] == [10.0, 8.0]


# -- words with a label each ---------------------------------------------------------------------------


def tagger(family="bert", ratios=None):
    shares = {1: 0.6, 2: 0.4, 3: 0.2} if ratios is None else ratios
    model = tiny_model(family, head="TokenClassification", classes=3)
    return install(model, TokenPruner(AttentionReceived(), KeepRatio(shares), shares))


def tagged():
    """Texts of words of two tokens each; the labels are at the first ones."""
    batch = sentences(LENGTHS)
    labels = torch.full_like(batch["input_ids"], -100)
    for row, length in enumerate(LENGTHS):
        labels[row, 1 : length - 1 : 2] = torch.arange(len(range(1, length - 1, 2))) % 3
    return batch | {"index": torch.arange(4), "labels": labels}


@pytest.mark.parametrize("family", FAMILIES)
def test_mask_drop_and_pack_give_the_same_logits_of_every_word(family):
    model, batch = tagger(family), tagged()
    masked, trace = predict(model, batch, "mask")
    assert masked.shape == (9 + 6 + 3 + 7, 3)
    assert trace.tokens_out[-1].tolist() == [4, 3, 1, 3]
    assert_executions_agree(model, batch)


def test_a_word_whose_token_is_removed_has_the_logits_of_where_it_left():
    model, batch = tagger(ratios={3: 0.0}), tagged()
    logits, _ = predict(model, batch, "pack")
    short = tiny_model(head="TokenClassification", classes=3)
    short.bert.encoder.layer = short.bert.encoder.layer[:3]
    with torch.no_grad():
        wanted = short(batch["input_ids"], batch["attention_mask"]).logits[batch["labels"] != -100]
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=0)


def test_its_loss_is_that_of_transformers():
    model, batch = tagger(), tagged()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        theirs = tiny_model(head="TokenClassification", classes=3)(**inputs).loss
    ours = task_loss(predict(model, batch, "dense")[0], batch["labels"], TOKENS)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_a_teacher_s_logits_are_kept_word_by_word_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(distillation_targets, "LIKELY_WORDS", 2)  # of translations only: here are three classes
    model, batch = tagger(), tagged()
    teacher_outputs(model, [batch], torch.tensor(LENGTHS)).save(tmp_path / "outputs.safetensors")
    logits, _ = TeacherOutputs.load(tmp_path / "outputs.safetensors").batch(torch.tensor([2, 0]), 25)
    dense, _ = predict(model, batch, "dense")
    torch.testing.assert_close(logits, torch.cat([dense[15:18], dense[:9]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_packed_engine_gives_the_logits_of_every_token(family):
    model, batch = tagger(family), tagged()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    result = PackedEngine(model)(inputs)
    words = batch["labels"] != -100
    torch.testing.assert_close(result.logits[words], predict(model, batch, "mask")[0], atol=1e-4, rtol=0)
    assert (result.logits[inputs["attention_mask"] == 0] == MASKED_LOGIT).all()
    assert (result.labels, result.probabilities) == (None, None)


def test_a_saved_tagger_is_loaded_as_one_pruned_and_plain(tmp_path):
    model, batch = tagger(), tagged()
    save(model, None, tmp_path)
    assert stored_head(tmp_path) is TAGGER
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    real = inputs["attention_mask"] > 0
    with torch.no_grad():
        plain, dense = load_stock(tmp_path)(**inputs).logits, model(**inputs, execution="dense").logits
        pruned, before = load(tmp_path)(**inputs).logits, model(**inputs).logits
    torch.testing.assert_close(plain[real], dense[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(pruned[real], before[real], atol=1e-6, rtol=0)


def test_labels_of_a_model_are_matched_by_name(tmp_path):
    model = tiny_model(head="TokenClassification", classes=3)
    model.config.id2label = {0: "O", 1: "B-PER", 2: "I-PER"}
    model.save_pretrained(tmp_path)
    batch = tagged()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        turned = load_model(tmp_path, TOKENS, ["B-PER", "I-PER", "O"]).eval()(**inputs)
        torch.testing.assert_close(turned.logits[..., [2, 0, 1]], model(**inputs).logits)
    with pytest.raises(
        ValueError, match=r"has the classes \[O, B-PER, I-PER\], but the task has \[B-PER, I-PER, B-LOC\]"
    ):
        load_model(tmp_path, TOKENS, ["B-PER", "I-PER", "B-LOC"])
    with pytest.raises(ValueError, match=r"has a head for token-classification, but the task is text-classification"):
        load_model(tmp_path, CLASSIFICATION, ["a", "b", "c"])


# -- a decoder -----------------------------------------------------------------------------------------


def translating(family, pruner=None, prefix=0):
    """A tiny translator and a batch of two targets, of 3 and 5 words."""
    batch = {name: tensor[:2] for name, tensor in SOURCE.items()}
    labels = TARGETS[:2, :5].clone()
    labels[0, 3:] = -100
    batch |= {"labels": labels, "index": torch.tensor([0, 1])}
    return install(translator(family), pruner, prefix=prefix), batch


@pytest.mark.parametrize("family", ["marian", "t5"])
def test_a_translation_has_a_row_of_logits_per_word_whatever_the_execution(family):
    model, batch = translating(family, TokenPruner(AttentionReceived(), KeepRatio({1: 0.5, 2: 0.3}), [1, 2]), 2)
    masked, trace = predict(model, batch, "mask")
    assert masked.shape == (8, 120)
    assert trace.tokens_out[-1].tolist() == [4, 3]
    for execution in ("drop", "pack"):
        torch.testing.assert_close(predict(model, batch, execution)[0], masked, atol=1e-5, rtol=0)
    check_executions_agree(model, batch)


def test_its_loss_and_distillation_do_not_see_padding():
    model, batch = translating("marian")
    logits, _ = predict(model, batch, "dense")
    alone = []
    for row, words in ((0, 3), (1, 5)):
        one = {name: tensor[row : row + 1] for name, tensor in batch.items()} | {
            "labels": batch["labels"][[row], :words]
        }
        alone.append(predict(model, one, "dense")[0])
    torch.testing.assert_close(logits, torch.cat(alone), atol=1e-5, rtol=0)
    loss = float(task_loss(logits, batch["labels"], TRANSLATION))
    parts = [float(task_loss(part, batch["labels"][[row], : len(part)], TRANSLATION)) for row, part in enumerate(alone)]
    assert loss == pytest.approx((3 * parts[0] + 5 * parts[1]) / 8)
    assert float(distillation_loss(logits, logits, 2.0)) == pytest.approx(0, abs=1e-6)


def test_a_teacher_s_likely_words_are_kept_word_by_word(tmp_path, monkeypatch):
    monkeypatch.setattr(distillation_targets, "LIKELY_WORDS", 4)
    model, batch = translating("t5", prefix=2)
    found = teacher_outputs(model, [batch], batch["attention_mask"].sum(-1))
    found.save(tmp_path / "outputs.safetensors")
    again = TeacherOutputs.load(tmp_path / "outputs.safetensors")
    logits, ranks = again.batch(torch.tensor([1, 0]), 16)
    dense, _ = predict(model, batch, "dense")
    wanted = torch.cat([dense[3:], dense[:3]])
    assert logits.shape == wanted.shape
    assert ((logits > MASKED_LOGIT).sum(-1) == 4).all()
    torch.testing.assert_close(logits.max(-1).values, wanted.max(-1).values)
    assert torch.equal(logits.argmax(-1), wanted.argmax(-1))
    # of 14 tokens the prefix and the end are not ranked
    assert ranks[1, :2].tolist() == [-1, -1]
    assert ranks[1, 13:].tolist() == [-1, -1, -1]
    assert sorted(ranks[1, 2:13].tolist()) == list(range(11))


@pytest.mark.parametrize("family", ["marian", "t5"])
def test_a_saved_translator_comes_back_with_its_prefix(family, tmp_path):
    model, batch = translating(family, TokenPruner(AttentionReceived(), KeepRatio({1: 0.5}), [1]), 3)
    save(model, None, tmp_path)
    assert stored_head(tmp_path) is TRANSLATOR
    again = load(tmp_path)
    assert encoder_of(again).prefix == 3
    torch.testing.assert_close(predict(again, batch, "pack")[0], predict(model, batch, "pack")[0])


def test_a_model_without_a_decoder_translates_nothing(tmp_path):
    tiny_model().base_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no decoder, but the task is translation"):
        load_model(tmp_path, TRANSLATION, None)
