"""What a reorganisation must not change: the folders that configurations name, and the models that were saved."""

import pytest
import torch
from support.models import sentences
from support.paths import TESTS

import prunekit
from prunekit.config.composition import compose
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical, teacher_config
from prunekit.tokens.state import Trace

SAVED_MODELS = TESTS / "fixtures" / "saved_models"

# typed -> the run's folder and its teacher's
FOLDERS = {
    "": ("bbc_news/top/minilm/3x/s1-1106a494", "bbc_news/dense/minilm/dense/s1-cc77d9ec"),
    "method=ltp task=sst2": ("sst2/ltp/minilm/3x/s1-168c1f85", "sst2/dense/minilm/dense/s1-99c1f4e5"),
    "method=topk task=cola budget=2x": ("cola/topk/minilm/2x/s1-b1efa426", "cola/dense/minilm/dense/s1-581a4a1e"),
    "method=tsdtp task=mrpc": ("mrpc/tsdtp/minilm/3x/s1-138673e5", "mrpc/dense/minilm/dense/s1-e6a8d717"),
    "method=dense task=cola": ("cola/dense/minilm/dense/s1-deec563b", None),
    "method=lat task=stsb budget=0.4": (
        "stsb/lat/minilm/2.5x/s1-34144d56", "stsb/dense/minilm/dense/s1-32c2dbe4"
    ),
    "method=threshold task=squad2": (
        "squad2/threshold/minilm/3x/s1-66fb17ed", "squad2/dense/minilm/dense/s1-c660b3c0"
    ),
    "method=wanda task=domain_legal backbone=smollm2": ("domain_legal/wanda/smollm2/sparse0.5/s1-36735c67", None),
    "method=dpruner task=domain_medical backbone=smollm2": (
        "domain_medical/dpruner/smollm2/sparse0.5/s1-4ada6cf0", None
    ),
    "experiment=top_cola": ("cola/top/bert_base/own/s1-d65cb689", "cola/dense/bert_base/dense/s1-8eaf7e04"),
    "experiment=ltp_mrpc": ("mrpc/ltp/roberta_base/own/s1-8e490737", "mrpc/dense/roberta_base/dense/s1-f7b4f559"),
}  # fmt: skip

# method -> logits of three sentences and the tokens left after each layer, as computed when the model was saved
OUTPUTS = {
    "top": (
        [[1.06482, -0.62526, 0.46118], [1.18928, -0.03781, 0.20906], [0.93652, 0.37235, -0.01847]],
        [[9, 5, 12], [9, 5, 12], [1, 1, 1], [1, 1, 1]],
    ),
    "ltp": (
        [[1.10936, -0.33601, 0.3626], [1.2798, -0.24208, 0.60425], [0.94872, 0.31228, 0.01561]],
        [[9, 5, 12], [1, 1, 1], [1, 1, 1], [1, 1, 1]],
    ),
    "topk": (
        [[1.1907, -0.7801, 0.36421], [1.1083, -0.34437, 0.65533], [0.96654, 0.43721, 0.043]],
        [[9, 5, 12], [6, 4, 8], [4, 2, 5], [1, 1, 1]],
    ),
    "threshold": (
        [[1.10936, -0.33601, 0.3626], [1.2798, -0.24208, 0.60425], [0.94872, 0.31228, 0.01561]],
        [[9, 5, 12], [1, 1, 1], [1, 1, 1], [1, 1, 1]],
    ),
    "tsdtp": (
        [[1.17535, -0.83418, -0.05934], [1.12405, -0.14427, 0.46555], [1.14073, 0.41067, -0.13156]],
        [[9, 5, 12], [7, 4, 9], [5, 3, 5], [5, 3, 5]],
    ),
    "lat": (
        [[1.32762, -0.73485, 0.14459], [1.18258, -0.57183, 0.49063], [1.07607, 0.47187, -0.18658]],
        [[7, 4, 10], [6, 3, 8], [5, 3, 6], [4, 2, 5]],
    ),
}


@pytest.mark.parametrize("typed", FOLDERS)
def test_a_configuration_names_the_same_folder(typed):
    cfg = canonical(compose(typed.split())[0])
    teacher = teacher_config(cfg)
    paths = (RunFolder.of(cfg).path, None if teacher is None else RunFolder.of(teacher).path)
    assert tuple(path and path.relative_to("runs").as_posix() for path in paths) == FOLDERS[typed]


@pytest.mark.parametrize("method", OUTPUTS)
def test_a_saved_model_computes_the_same(method):
    logits, tokens = OUTPUTS[method]
    trace = Trace()
    with torch.no_grad():
        found = prunekit.load(SAVED_MODELS / method)(**sentences([9, 5, 12], seed=3), trace=trace).logits
    torch.testing.assert_close(found, torch.tensor(logits), atol=2e-5, rtol=0)
    assert [kept.tolist() for kept in trace.tokens_out] == tokens
