"""TS-DTP: its formulas by hand, the notebook's constant importance, gates whose limit is the hard decision, budgets."""

import math
from statistics import NormalDist
from types import SimpleNamespace

import pytest
import torch
from support.models import method_under_test, sentences, tiny_model

from prunekit.cost import BERT_BASE, Shape, encoder_macs, layer_macs
from prunekit.data.ragged import Ragged
from prunekit.data.translations import TranslationTargets
from prunekit.evaluation.evaluate import evaluate
from prunekit.losses import candidate_share, consistency
from prunekit.methods.tsdtp import _even_counts
from prunekit.models.pretrained import load_pruner, save_pruner
from prunekit.tokens.attention import AttentionCall, attend_padded, attention_received
from prunekit.tokens.encoder import install
from prunekit.tokens.policies import MeanMinusStd
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AccumulatedReceived
from prunekit.tokens.state import Signals, TokenState, Trace
from prunekit.tokens.task_attention import TaskImportance, task_attention

ROWS = [24, 17, 9, 30, 12, 21, 28, 15]
VALIDATION = [sentences(ROWS, seed=n) | {"labels": torch.arange(8) % 3, "index": torch.arange(8)} for n in range(4)]
BATCH = VALIDATION[0]


def state(tokens, *, protected=(), alive=None, **given):
    keep = torch.ones(1, tokens) if alive is None else torch.tensor([alive]).float()
    stays = torch.zeros(1, tokens)
    stays[0, list(protected)] = 1
    return TokenState(keep, torch.arange(tokens)[None], stays, keep.sum(-1), **given)


def kept(scores, k=1.0, space="linear", least=0, protected=()):
    scores = torch.tensor([scores]) if isinstance(scores, list) else scores
    policy = MeanMinusStd({0: k}, space, least)
    return policy(0, scores, state(scores.shape[1], protected=protected))[0].tolist()


def dtp(name="dtp", **given):
    found = method_under_test(name, lengths=ROWS * 4, validation=VALIDATION, **given)
    found._trainer = SimpleNamespace(optimizers=[], _results=SimpleNamespace(reset=lambda: None))
    return found


def measured(found, execution="mask"):
    context = found.context
    return evaluate(found.model, VALIDATION, context.spec, context.shape, context.targets[0], execution).reduction


# -- what the published notebook computes --------------------------------------------------------------


@pytest.mark.parametrize(("layers", "size", "value"), [(2, 5, 0.6), (12, 32, 0.5625)])
def test_the_notebooks_importance_is_the_same_for_every_token(layers, size, value):
    """E-1: it averages attention over the keys, and a row of a softmax adds up to 1 whatever its scores are."""
    torch.manual_seed(0)
    importance = torch.zeros(3, size)
    for _ in range(layers):
        attention = torch.softmax(5 * torch.randn(3, 4, size, size), dim=-1)
        of_task = torch.softmax(5 * torch.randn(3, 1, size, size), dim=-1)
        importance += (attention + 0.5 * of_task).mean(1).mean(-1)  # heads, then keys
    torch.testing.assert_close(importance, torch.full((3, size), value))
    # and so its auxiliary loss is 0 (E-6), and its threshold is met or missed by rounding alone
    assert (importance.mean(-1) - importance.mean()).abs().mean() < 1e-6
    assert importance.std(-1).max() < 1e-6


def test_the_auxiliary_loss_of_the_notebook_is_0_on_received_attention_too():
    """E-6: over tokens the attention received has the same mean in every sentence of a length."""
    received = torch.softmax(torch.randn(6, 9, 9), dim=-1).sum(1)
    assert consistency(received.mean(-1)) < 1e-6


# -- importance ----------------------------------------------------------------------------------------

STANDARD = torch.tensor([[[[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.6, 0.3, 0.1]]]])
OF_TASK = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])
IMPORTANCE = [2.1, 1.75, 0.65]


def test_importance_is_what_a_token_receives_of_both():
    """E-2: column sums, whose mean is 1 + gamma."""
    scorer = TaskImportance(2, 3, [0], gamma=0.5)
    scorer.task_attention_received = lambda state: attention_received(OF_TASK[None, None], state.alive)
    found = scorer(Signals(received=attention_received(STANDARD, torch.ones(1, 3))), state(3))[0]
    assert found.tolist() == pytest.approx(IMPORTANCE)
    assert found.mean().item() == pytest.approx(1.5)


def test_task_attention_by_hand():
    """E-3. A bias of the key would add to all logits of a row alike: with and without it the result is the same."""
    entered = torch.tensor([[[1.0, 0], [0, 1], [1, 1]]])
    embedded = torch.tensor([[[0.5, 1], [1, 0.5], [0, 2]]])
    query = entered @ torch.tensor([[1.0, 0, 1], [0, 1, -1]])
    key = embedded @ torch.tensor([[1.0, 0], [0, 1], [1, 1]]).T
    expected = [[0.299881, 0.400238, 0.299881], [0.324263, 0.242956, 0.432781], [0.299881, 0.299881, 0.400238]]
    everyone = torch.ones(1, 3)
    for bias in (torch.tensor([0, 0.5, -0.5]), torch.zeros(3)):
        found = task_attention(query, key + bias, everyone)
        torch.testing.assert_close(found, torch.tensor([expected]), atol=1e-6, rtol=0)
    assert found[0].sum(0).tolist() == pytest.approx([0.924025, 0.943075, 1.132900], abs=2e-6)
    gram = task_attention(*[key + torch.tensor([0, 0.5, -0.5])] * 2, everyone)[0].sum(0)
    assert gram.tolist() == pytest.approx([0.611639, 0.491735, 1.896626], abs=2e-6)


def test_the_scorer_adds_both_to_what_was_there():
    scorer = TaskImportance(2, 3, [4, 5], gamma=0.5)
    with torch.no_grad():
        scorer.query[1] = torch.tensor([[1.0, 0, 1], [0, 1, -1]])
        scorer.key[1] = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    here = state(
        3,
        layer=5,
        hidden=torch.tensor([[[1.0, 0], [0, 1], [1, 1]]]),
        embedded=torch.tensor([[[0.5, 1], [1, 0.5], [0, 2]]]),
        previous=torch.tensor([[10.0, 20, 30]]),
    )
    received = torch.tensor([[1.0, 1.5, 0.5]])
    found = scorer(Signals(received=received), here)[0]
    assert found.tolist() == pytest.approx([11 + 0.924025 / 2, 21.5 + 0.943075 / 2, 30.5 + 1.1329 / 2], abs=1e-5)


def test_gone_tokens_neither_receive_nor_vote():
    torch.manual_seed(0)
    scorer = TaskImportance(4, 2, [0], gamma=1.0)
    hidden, embedded = torch.randn(1, 5, 4), torch.randn(1, 5, 4)
    whole = scorer.task_attention_received(state(5, alive=[1, 0, 1, 1, 0], hidden=hidden, embedded=embedded))
    here = [0, 2, 3]
    without = scorer.task_attention_received(state(3, hidden=hidden[:, here], embedded=embedded[:, here]))
    assert whole[0, [1, 4]].tolist() == [0, 0]
    torch.testing.assert_close(whole[:, here], without)
    assert without.mean().item() == pytest.approx(1)


# -- the threshold -------------------------------------------------------------------------------------


def test_the_threshold_by_hand():
    """E-2: mean 1.5, population sigma .617792, threshold .882208; of logarithms -.225."""
    for space, threshold in (("linear", 0.882208), ("log", -0.225)):
        policy = MeanMinusStd({0: 1.0}, space)
        margin, _, _ = policy.margin(0, torch.tensor([IMPORTANCE]), state(3))
        first = math.log(2.1) if space == "log" else 2.1
        assert first - margin[0, 0].item() == pytest.approx(threshold, abs=1e-5)
        assert kept(IMPORTANCE, space=space) == [1, 1, 0]


def test_protected_tokens_are_no_candidates():
    """E-2 with token 0 protected: the threshold is .65 itself, and what reaches it stays."""
    policy = MeanMinusStd({0: 1.0}, "linear")
    margin, candidate, _ = policy.margin(0, torch.tensor([IMPORTANCE]), state(3, protected=[0]))
    assert candidate.tolist() == [[0, 1, 1]]
    assert margin[0, 2].item() == pytest.approx(0, abs=1e-6)
    assert kept(IMPORTANCE, protected=[0])[1:] == [1, 1]


def test_one_token_that_receives_half_hides_the_others_unless_logarithms_are_compared():
    """E-4: the threshold is below 0 and nothing goes, whatever the others are."""
    sink = [0.5, *[0.5 / 31] * 31]
    policy = MeanMinusStd({0: 1.0}, "linear")
    margin, _, variance = policy.margin(0, torch.tensor([sink]), state(32))
    assert variance.sqrt().item() == pytest.approx(0.084190, abs=1e-6)
    assert 0.5 - margin[0, 0].item() == pytest.approx(-0.052940, abs=1e-5)
    torch.manual_seed(0)
    uneven = [0.5, *(0.5 / 31 * torch.randn(31).mul(0.5).exp()).tolist()]
    assert sum(kept(uneven)) == 32
    assert sum(kept(uneven, space="log")) < 32


@pytest.mark.parametrize(("spread", "linear"), [(0.25, 0.1476), (0.5, 0.1016), (0.75, 0.0098), (1.0, 0.0)])
def test_of_skewed_importance_logarithms_prune_the_same_share(spread, linear):
    """E-4, on quantiles of a log-normal."""
    middle = (torch.arange(20001) + 0.5) / 20001
    scores = torch.distributions.Normal(0, spread).icdf(middle).exp()[None]
    assert 1 - sum(kept(scores)) / 20001 == pytest.approx(linear, abs=2e-3)
    assert 1 - sum(kept(scores, space="log")) / 20001 == pytest.approx(0.1587, abs=1e-3)


@pytest.mark.parametrize("k", [0.5, 1.0, 2.0])
def test_no_more_than_cantelli_allows_is_pruned(k):
    """E-7: at most 1 / (1 + k^2), with the population's standard deviation."""
    torch.manual_seed(0)
    for _ in range(50):
        scores = torch.rand(1, 40) ** 6 + 1e-3
        for space in ("linear", "log"):
            assert 1 - sum(kept(scores, k, space)) / 40 <= 1 / (1 + k**2)


def test_little_is_never_less_than_something():
    assert kept([1.0, 2.0, 4.0], k=-5.0, least=1) == [0, 0, 1]
    assert kept([1.0, 2.0, 4.0], k=-5.0, least=2) == [0, 1, 1]
    assert kept([3.0, 3.0, 3.0], k=-5.0) == [1, 1, 1]  # all alike: nobody is worse
    assert kept([1.0, 2.0], k=-5.0, protected=[1])[0] == 1  # the only candidate


# -- gates ---------------------------------------------------------------------------------------------

DISTANCES = [-1, -0.2, 0, 0.3, 1]


@pytest.mark.parametrize(
    ("temperature", "gates"),
    [(0.5, [0.119203, 0.401312, 0.5, 0.645656, 0.880797]), (0.1, [4.5e-5, 0.119203, 0.5, 0.952574, 0.999955])],
)
def test_gates_by_hand(temperature, gates):
    """E-5, around the threshold of those scores: their mean is .02, so k is what takes it to 0."""
    scores = torch.tensor([[10.0 + distance for distance in DISTANCES]])
    spread = (torch.tensor(DISTANCES).double().var(unbiased=False) + 1e-6).sqrt().item()
    policy = MeanMinusStd({0: 0.02 / spread}, "linear", temperature=temperature)
    assert policy.soft(0, scores, state(5))[0].tolist() == pytest.approx(gates, abs=2e-6)


def test_a_gate_counts_as_a_fraction_of_a_key():
    """E-5: logits 1, 2, .5 with gates 1, .25, 1; at 0 exactly hidden, which a hidden state of 0 is not."""
    logits = torch.tensor([1.0, 2.0, 0.5])
    query, key = torch.ones(1, 1, 3, 1), logits.view(1, 1, 3, 1)

    def attention(keep):
        keep = torch.tensor([keep])
        bias = torch.where(keep > 0, keep, 1.0).log()
        call = AttentionCall(needs=frozenset({"probs"}), keys=keep > 0, key_bias=bias)
        return attend_padded(query, key, key, call, 0.0, 1.0)[1].probs[0, 0, 0].tolist()

    assert attention([1.0, 0.25, 1.0]) == pytest.approx([0.437426, 0.297262, 0.265312], abs=1e-6)
    assert attention([1.0, 0.0, 1.0]) == pytest.approx([0.622459, 0, 0.377541], abs=1e-6)
    assert torch.softmax(logits * torch.tensor([1, 0, 1]), 0).tolist() == pytest.approx(
        [0.506480, 0.186324, 0.307196], abs=1e-6
    )


@pytest.mark.parametrize("name", ["dtp", "tsdtp"])
def test_the_limit_of_the_gates_is_the_hard_decision(name):
    """Logits under gates of vanishing temperature are those of the tokens that stay."""
    found = dtp(name, fixed_k=0.3, budget=None).eval()
    found.policy.temperature = 1e-6
    traces = {execution: Trace() for execution in ("soft", "mask")}
    logits = {how: found(BATCH, how, trace) for how, trace in traces.items()}
    hard = traces["mask"].tokens_out
    softly = torch.stack([(entry.keep > 0.5).float().sum(-1) for entry in traces["soft"].layers])
    assert torch.equal(hard[:3], softly[:3])
    assert hard[2].sum() < 0.8 * sum(ROWS)
    torch.testing.assert_close(logits["soft"], logits["mask"], atol=1e-5, rtol=0)


def test_running_gates_multiply():
    found = dtp(fixed_k=0.5, budget=None).eval()
    trace = Trace()
    found(BATCH, "soft", trace)
    first, second = (entry.keep for entry in trace.layers[1:3])
    real = BATCH["attention_mask"] > 0
    assert (second <= first)[real].all()
    assert (second < first)[real].float().mean() > 0.8  # all but the protected
    assert second[:, 0].tolist() == [1] * 8


def test_equal_scores_have_gradients_that_are_numbers():
    """E-7: the root is taken of the variance and a little more."""
    scores = torch.ones(1, 6, requires_grad=True)
    policy = MeanMinusStd({0: 1.0})
    policy.soft(0, scores, state(6)).sum().backward()
    assert torch.isfinite(scores.grad).all()
    assert torch.isfinite(policy.k.grad).all()


# -- the auxiliary loss --------------------------------------------------------------------------------


def test_shares_and_their_consistency_by_hand():
    """E-6."""
    gates = torch.tensor([[0.9, 0.1, 0.8, 0.6], [0.3, 0.3, 0.2, 0.0]])
    share = candidate_share(gates, torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]))
    assert share.tolist() == pytest.approx([0.6, 0.266667], abs=1e-6)
    assert consistency(share).item() == pytest.approx(0.166667, abs=1e-6)
    assert (share.mean() - 0.5).abs().item() == pytest.approx(0.066667, abs=1e-6)


def test_a_keep_ratio_is_aimed_at_as_it_stands():
    found = dtp(budget=None, keep_ratio=0.5).eval()
    aux = found.terms(BATCH)["aux"]
    trace = Trace()
    found(BATCH, "soft", trace)
    keep, protected = trace.layers[2].keep, trace.layers[2].protected
    shares = [
        (k * (p == 0) * m).sum() / ((p == 0) * m).sum()
        for k, p, m in zip(keep, protected, BATCH["attention_mask"], strict=True)
    ]
    assert aux.item() == pytest.approx(abs(sum(shares).item() / 8 - 0.5), abs=1e-5)


def test_a_budget_is_aimed_at_in_flops_with_the_task_attention_among_them():
    """With gates of 1 everywhere the share is 1 and what task attention costs; curves show the share that is gone."""
    found = dtp("tsdtp", budget=1.6, k_init=100.0, gamma=1e-6).eval()
    aux = found.terms(BATCH)["aux"]
    low, _ = found.options.feasible(found.context)
    assert found.logged["budget/expected"].item() == pytest.approx(1 - 1 / low, rel=0.02)
    assert aux.item() == pytest.approx(1 - found.logged["budget/expected"].item() - 1 / 1.6, abs=1e-5)
    assert low < 1


@pytest.mark.parametrize("name", ["dtp", "tsdtp"])
@pytest.mark.parametrize(("temperature", "layers"), [(1e-5, [1, 2]), (0.5, [1])])
def test_a_budget_counts_decisions_as_they_will_be_made(name, temperature, layers):
    """Cold gates decide as an evaluation does, and so does the first layer at any temperature; k has a gradient."""
    found = dtp(name, budget=2.0, k_init=0.2, prune_layers=layers, temperature=[temperature] * 2).eval()
    found.terms(BATCH)["aux"].backward()
    context = found.context
    hard = evaluate(found.model, [BATCH], context.spec, context.shape, context.targets[0], "mask").reduction
    assert 1.2 < hard < 2
    assert found.logged["budget/expected"].item() == pytest.approx(1 - 1 / hard, abs=1e-5)
    if temperature > 0.1:
        assert (found.policy.k.grad > 0).all()  # too much is left: lower


@pytest.mark.parametrize(("least", "stays"), [(1, 3), (3, 5)])
def test_a_budget_counts_the_min_keep_that_no_gate_knows_of(least, stays):
    """A threshold above everything closes each gate; the two protected and the best `min_keep` are left."""
    found = dtp(budget=1.5, k_init=-50.0, min_keep=least, prune_layers=[1], temperature=[1e-3] * 2).eval()
    found.terms(BATCH)
    whole = BATCH["attention_mask"].sum(-1).double()
    left = torch.full_like(whole, stays)
    shape = found.context.shape
    spent = encoder_macs(shape, torch.stack([whole, whole, left, left]), torch.stack([whole, left, left, left])).sum()
    dense = encoder_macs(shape, whole.expand(4, -1), whole.expand(4, -1)).sum()
    assert found.logged["budget/expected"].item() == pytest.approx(1 - (spent / dense).item(), abs=1e-6)


@pytest.mark.parametrize("name", ["dtp", "tsdtp"])
@pytest.mark.parametrize("family", ["marian", "t5"])
def test_a_translators_source_is_counted_as_it_will_be_pruned(family, name):
    """The budget is one of the encoder, whatever stands behind it; only the end of a sentence is protected there."""
    from support.translators import translator

    targets = torch.randint(5, 120, (8, 6), generator=torch.Generator().manual_seed(1))
    batch = sentences(ROWS, seed=0) | {"labels": targets, "index": torch.arange(8)}
    found = method_under_test(
        name, lengths=ROWS * 4, budget=1.6, model=translator(family), task="parallel",
        k_init=0.2, prune_layers=[1], temperature=[0.5] * 2,
    ).eval()  # fmt: skip
    found.terms(batch)["aux"].backward()
    context = found.context
    of_batch = TranslationTargets(Ragged.of(targets.tolist()))
    hard = evaluate(found.model, [batch], context.spec, context.shape, of_batch, "mask").reduction
    assert 1.1 < hard < 1.6
    assert found.logged["budget/expected"].item() == pytest.approx(1 - 1 / hard, abs=1e-5)
    assert found.policy.k.grad.item() > 0  # too much is left: lower
    assert found.multiplier.grad.item() == pytest.approx(1 / hard - 1 / 1.6, abs=0.05)  # lengths of validation, as here


def test_padding_does_not_change_what_a_budget_counts():
    found = dtp("tsdtp", budget=2.0, prune_layers=[0, 2]).eval()
    aux = found.terms(BATCH)["aux"].item()
    wider = BATCH | {name: torch.nn.functional.pad(BATCH[name], (0, 7)) for name in ("input_ids", "attention_mask")}
    assert found.terms(wider)["aux"].item() == pytest.approx(aux, abs=1e-6)


def test_k_starts_where_normal_scores_would_meet_the_budget():
    """Of normal scores a share s lies above mean - k deviations for k = inverse of the distribution at s."""
    start = dtp(budget=2.0).policy.start
    assert len(set(start.values())) == 1
    k = next(iter(start.values()))
    assert NormalDist().cdf(k) == pytest.approx(dtp(budget=2.0).share, abs=1e-6)
    assert set(dtp(budget=None, keep_ratio=0.25).policy.start.values()) == {
        NormalDist().inv_cdf(0.25 ** (1 / len(start)))
    }
    assert set(dtp(budget=None).policy.start.values()) == {1.0}
    assert set(dtp(budget=2.0, k_init=0.3).policy.start.values()) == {0.3}
    assert min(dtp(budget=None, keep_ratio=1.0).policy.start.values()) > 4  # nothing is asked to go


def test_leaving_the_same_share_everywhere_meets_the_budget():
    found = dtp(budget=2.0)
    tokens_in, tokens_out = _even_counts(found.share, torch.tensor(ROWS * 4), 2, 1, found.policy.row, 4)
    assert found.context.reduction(tokens_in, tokens_out) == pytest.approx(2.0, rel=2e-3)
    first = min(found.policy.row)
    assert tokens_out[first, 0].item() == pytest.approx(2 + 22 * found.share)


def test_an_even_share_asks_for_no_more_than_a_decision_can_take():
    """Two protected and one more stay: of 5 tokens 2 can go, of 3 none."""
    _, tokens_out = _even_counts(0.5, torch.tensor([10, 5, 3, 2]), 2, 1, [1, 2], 4)
    assert tokens_out.tolist() == [[10, 5, 3, 2], [6, 3.5, 3, 2], [4, 3, 3, 2], [4, 3, 3, 2]]


def test_short_texts_are_asked_for_less_than_the_budget():
    """What 2x means where most tokens are protected; validation has 9 to 30 tokens."""
    found = dtp(budget=2.0).eval()
    found.terms(BATCH)
    as_validated = float(found.logged["budget/target"])
    found.terms(sentences([6, 5, 8, 4], seed=1) | {"labels": torch.zeros(4, dtype=torch.long)})
    short = float(found.logged["budget/target"])
    assert as_validated == pytest.approx(0.5, abs=1e-3)
    assert 0.2 < short < 0.42


def test_the_multiplier_raises_the_price_until_the_budget_holds():
    """Its gradient is the gap, and it is trained by ascent: it rises while too much is left."""
    found = dtp(budget=2.0, k_init=100.0).eval()
    groups = {group["name"]: group for group in found.parameter_groups()}
    assert groups["multiplier"]["maximize"]
    assert groups["multiplier"]["lr"] == pytest.approx(10 / found.soft_steps)
    found.terms(BATCH)["aux"].backward()
    assert found.multiplier.grad.item() == pytest.approx(0.5, abs=1e-3)
    with torch.no_grad():
        found.multiplier.fill_(3.0)
    assert found.terms(BATCH)["aux"].item() == pytest.approx((1 + 3) * 0.5, abs=1e-2)
    for given in ({"aux_lr": 0.0}, {"learn_k": False}):  # nobody pays, or nobody can
        assert "multiplier" not in {group["name"] for group in dtp(**given).parameter_groups()}


@pytest.mark.parametrize("asked", [{"budget": 1.0}, {"budget": None, "keep_ratio": 1.0}])
def test_a_soft_stage_goes_on_where_nothing_has_to_go(asked):
    """The shift that keeps everything is found during the stage where there is no hard one: gradients stay numbers."""
    found = dtp(hard_fraction=0.0, **asked)
    found.calibrate()
    torch.stack(list(found.terms(BATCH).values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in found.parameters() if p.grad is not None)
    assert found.policy.k.grad is not None


@pytest.mark.parametrize(("aux", "terms"), [("none", {"task"}), ("consistency", {"task", "aux"})])
def test_other_auxiliary_losses(aux, terms):
    assert set(dtp(aux=aux).terms(BATCH)) == terms


@pytest.mark.parametrize("name", ["dtp", "tsdtp"])
def test_the_task_loss_alone_teaches_everything_that_is_learned(name):
    """E-7: k of each layer, and both projections of the task, by gradients that are no rounding."""
    found = dtp(name, aux="none")
    found.terms(BATCH)["task"].backward()
    parameters = dict(found.pruner.named_parameters())
    assert set(parameters) == {"policy.k"} | ({"scorer.query", "scorer.key"} if name == "tsdtp" else set())
    assert all(parameter.grad.abs().max() > 1e-8 for parameter in parameters.values())


def test_the_temperature_falls_in_the_soft_stage():
    found = dtp(hard_fraction=0.0)  # 40 steps, of which 28
    assert [found.temperature(step) for step in (0, 14, 28, 39)] == pytest.approx([0.5, 0.275, 0.05, 0.05])


# -- what it costs -------------------------------------------------------------------------------------


def test_macs_of_an_encoder_layer():
    """E-7."""
    assert layer_macs(BERT_BASE, torch.tensor(128), torch.tensor(128)).item() == 931_135_488
    assert layer_macs(BERT_BASE, torch.tensor(64), torch.tensor(64)).item() == 459_276_288
    lengths = torch.tensor([128, 128, 115, 104, 93, 84, 76, 68, 61, 55, 50, 45])
    share = encoder_macs(BERT_BASE, lengths, lengths) / (12 * 931_135_488)
    assert share.item() == pytest.approx(0.650827, abs=1e-6)


def test_task_attention_of_128_tokens_costs_3_percent_of_a_layer():
    scorer = TaskImportance(768, 128, range(9), 0.5)
    assert scorer.macs(torch.tensor(128.0)).item() == 2 * 128 * 768 * 128 + 128 * 128 * 128
    assert scorer.macs(torch.tensor(128.0)).item() / 931_135_488 == pytest.approx(0.029, abs=1e-3)


def test_the_cost_of_the_scorer_is_in_the_measured_reduction():
    """Nothing pruned: 1x for the method without a task, less with one, and just what the scorer says."""
    plain, task = (dtp(name, fixed_k=100.0, budget=None) for name in ("dtp", "tsdtp"))
    assert measured(plain) == pytest.approx(1.0)
    assert measured(task, "pack") == pytest.approx(task.options.feasible(task.context)[0])
    assert measured(task) < 0.99


def test_what_can_be_reached_ends_with_the_protected_and_one_more():
    found = dtp("tsdtp")
    found.policy.shift.fill_(torch.inf)
    assert measured(found) == pytest.approx(found.options.feasible(found.context)[1])


def test_without_a_weight_the_task_has_no_parameters_and_no_cost():
    """gamma 0, or no task attention, is General DTP."""
    plain = dtp("dtp").pruner
    for given in ({"gamma": 0.0}, {"task_attention": "none"}):
        pruner = dtp("tsdtp", **given).pruner
        assert type(pruner.scorer) is type(plain.scorer) is AccumulatedReceived
        assert pruner.policy.arguments() == plain.policy.arguments()


def test_a_frozen_task_attention_is_no_parameter_that_learns():
    found = dtp("tsdtp", task_attention="frozen")
    assert [group["name"] for group in found.parameter_groups()] == ["k", "multiplier"]
    assert not found.pruner.scorer.query.requires_grad


def test_six_layers_prune_as_far_in_as_twelve():
    layers = {n: sorted(dtp().options.build_pruner(Shape(n, 32, 64, 4)).policy.row) for n in (2, 6, 12, 24)}
    assert layers == {2: [1], 6: [1, 2, 3, 4], 12: [2, 4, 6, 8], 24: [4, 8, 12, 16]}


# -- stages and budgets --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "budget"), [("dtp", 1.3), ("dtp", 2.0), ("tsdtp", 1.6)])
def test_the_hard_stage_meets_the_budget(name, budget):
    found = dtp(name, budget=budget, step=24)
    found.begin_step(found.global_step)
    assert found.hard
    assert measured(found) == pytest.approx(budget, rel=0.02)
    assert set(found.terms(BATCH)) == {"task"}


def test_the_hard_stage_meets_a_keep_ratio():
    found = dtp(budget=None, keep_ratio=0.4, step=30)
    found.calibrate()
    assert found.budget_report(1.5)["knob"] == {
        "name": "keep ratio",
        "asked": 0.4,
        "reached": pytest.approx(0.4, rel=0.02),
    }


def test_the_soft_stage_is_evaluated_as_it_is_and_never_chosen():
    found = dtp(step=10)
    found.on_validation_epoch_start()
    assert found.policy.shift.item() == 0
    assert not found.meets_budget(2.0)
    assert dtp(step=30).meets_budget(2.0)


def test_a_fine_tuned_model_is_pruned_as_it_is():
    found = dtp(train=False, budget=1.7)
    found.calibrate()
    assert measured(found, "pack") == pytest.approx(1.7, rel=0.02)


def test_the_notebooks_k_is_taken_as_it_is():
    found = dtp(budget=None, fixed_k=1.0, space="linear")
    assert not found.policy.k.requires_grad
    assert found.parameter_groups() == []
    found.calibrate()
    assert found.policy.shift.item() == 0


# -- several tasks on one backbone ---------------------------------------------------------------------


def test_one_backbone_carries_the_pruners_of_several_tasks(tmp_path):
    """Each file holds k and the task attention alone, and brings its own decisions."""
    model, batch = tiny_model(), sentences(ROWS)
    kept_by = {}
    for task, k in (("sst2", 0.8), ("qnli", 0.0)):
        pruner = TokenPruner(
            TaskImportance(32, 5, range(3), 0.5),
            MeanMinusStd({1: k, 2: k}),
            range(3),
            soft_form="bias",
            protect_last=True,
        )
        trace = Trace()
        install(model, pruner)(**batch, trace=trace)
        kept_by[task] = trace.tokens_out
        save_pruner(model, tmp_path / task)
        assert (tmp_path / task / "task_pruner.safetensors").stat().st_size < 10_000
    assert not torch.equal(kept_by["sst2"], kept_by["qnli"])
    for task in ("sst2", "qnli"):
        trace = Trace()
        load_pruner(model, tmp_path / task)(**batch, trace=trace)
        assert torch.equal(trace.tokens_out, kept_by[task])


def test_a_pruner_of_another_backbone_is_refused(tmp_path):
    scorer = TaskImportance(32, 5, range(3), 0.5)
    save_pruner(install(tiny_model(), TokenPruner(scorer, MeanMinusStd({1: 1.0}), range(3))), tmp_path)
    with pytest.raises(ValueError, match=r"hidden size 32, but .* has 16"):
        load_pruner(tiny_model(hidden=16), tmp_path)
    with pytest.raises(ValueError, match=r"layer 2, but BertForSequenceClassification has layers 0\.\.1"):
        load_pruner(tiny_model(layers=2), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"task_pruner\.json"):
        load_pruner(tiny_model(), tmp_path / "nowhere")
