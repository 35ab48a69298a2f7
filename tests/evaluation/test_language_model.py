import math

import pytest
import torch
from support.letters import letters
from support.tiny_decoders import tiny_decoder

from prunekit.evaluation.language_model import choice_scores, choose, combined, perplexity, rouge, windows


@pytest.mark.parametrize(("length", "window", "stride"), [(10, 4, 1), (10, 4, 4), (10, 4, 3), (3, 8, 2), (9, 8, 8)])
def test_every_token_but_the_first_is_predicted_once(length, window, stride):
    seen = [token for start, end, first in windows(length, window, stride) for token in range(first, end)]
    assert seen == list(range(1, length))
    assert all(end - start <= window and first > start for start, end, first in windows(length, window, stride))


def test_tokens_count_alike_or_windows_do():
    assert combined([2.0 * 2047, 3.0 * 511], [2047, 511]) == pytest.approx(9.022897, abs=1e-6)
    assert combined([2.0 * 2047, 3.0 * 511], [2047, 511], "window") == pytest.approx(12.182494, abs=1e-6)
    assert combined([1e6], [1]) == math.inf


def test_one_window_is_the_models_own_loss():
    model, ids = tiny_decoder(), torch.randint(2, 64, (20,))
    with torch.no_grad():
        own = model(ids[None], labels=ids[None]).loss
    assert perplexity(model, ids, 32) == pytest.approx(float(own.exp()), rel=1e-5)


def test_smaller_steps_see_more():
    model, ids = tiny_decoder(), torch.randint(2, 64, (40,))
    one, other = perplexity(model, ids, 8, 8), perplexity(model, ids, 8, 1)
    assert one != other
    assert perplexity(model, ids, 40, 40) == pytest.approx(perplexity(model, ids, 64, 16), rel=1e-5)


def test_a_choice_is_made_by_the_likelihood_per_character_of_the_whole_sequence():
    model, tokenizer = tiny_decoder(), letters()
    choices = ["YES", "PERHAPS"]
    scores, sums = [], []
    for choice in choices:
        ids = torch.tensor(tokenizer("IS IT? " + choice)["input_ids"])
        with torch.no_grad():
            logs = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        sums.append(float(logs[-len(" " + choice) :].sum()))
        scores.append(sums[-1] / len(" " + choice))
    assert sums.index(max(sums)) != scores.index(max(scores))  # the shorter one has the higher sum
    assert choose(model, tokenizer, "IS IT?", choices, 64) == scores.index(max(scores))


def test_rouge_is_1_where_the_reference_is_what_the_model_says_and_0_where_it_says_none_of_it():
    model, tokenizer = tiny_decoder(), letters()
    ids = tokenizer("IS IT?", return_tensors="pt")["input_ids"]
    said = tokenizer.decode(model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=1)[0, ids.shape[1] :])
    assert set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") & set(said)  # ROUGE knows no other signs
    assert rouge(model, tokenizer, [("IS IT?", said)], 6, 64) == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert rouge(model, tokenizer, [("IS IT?", "nothing alike")], 6, 64)["rouge1"] == 0.0


def test_accuracy_and_macro_f1_by_hand():
    found = choice_scores([0, 0, 1, 1], [0, 1, 1, 1], 3)
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)  # class 2 never occurs


def test_a_prompt_may_be_empty_and_must_have_room():
    model, tokenizer = tiny_decoder(), letters()
    tokenizer.eos_token = "?"
    assert choose(model, tokenizer, "", ["YES", "NO"], 64) in (0, 1)
    with pytest.raises(ValueError, match="the longest choice has 4 tokens, and the model takes 4"):
        choose(model, tokenizer, "IS IT?", ["YES", "NO"], 4)
    with pytest.raises(ValueError, match=r"new_tokens=64 leaves no room for a prompt: the model takes 64 tokens"):
        rouge(model, tokenizer, [("IS IT?", "YES")], 64, 64)
