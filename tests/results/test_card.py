import pytest
from huggingface_hub import ModelCard
from support.run_result import RESULT, changed

from prunekit.results.card import model_card


@pytest.fixture
def card(tmp_path):
    text = model_card(RESULT, base_model="org/minilm", labels=["tech", "sport"], hardware="a laptop")
    (tmp_path / "README.md").write_text(text)
    return ModelCard.load(tmp_path / "README.md")


def test_the_hub_reads_its_metadata(card):
    data = card.data
    assert data.base_model == "org/minilm"
    assert data.tags == ["prunekit", "token-pruning", "top"]
    assert data.pipeline_tag == "text-classification"
    found = [(entry.metric_type, entry.metric_value, entry.dataset_split) for entry in data.eval_results]
    assert found == [("accuracy", 0.962, "test"), ("f1", 0.9634, "test")]


def test_it_says_how_to_load_it_and_that_without_prunekit_it_is_dense(card):
    assert 'model = prunekit.load("path/to/this/folder")' in card.text
    assert (
        "`AutoModelForSequenceClassification.from_pretrained(...)` loads the same weights as a plain **dense** model"
        in card.text
    )


def test_it_gives_both_flops_baselines_and_the_measured_speed_with_its_place(card):
    assert (
        "2.98x fewer FLOPs than the same texts take without padding, 3.85x fewer than padded to 128 tokens" in card.text
    )
    assert "| CPU ms per batch of 32, packed | 369 | 172 | 2.15x faster |" in card.text
    assert "medians of interleaved rounds on a laptop" in card.text


def test_a_text_with_several_labels_is_read_by_thresholds():
    text = model_card(RESULT, labels=["tech", "sport"], several=True)
    assert ".logits.sigmoid()[0]" in text
    assert 'getattr(model.config, "label_thresholds", [0.5] * len(probabilities))' in text


def test_it_tells_its_limits(card):
    assert "- At batch size 1 the dense model was faster where this was measured; use it there." in card.text
    assert "- The weights on disk are as large as the dense model's" in card.text
    assert "- Texts longer than the model sees were cut: 1210 train texts." in card.text
    assert "- Classes: tech, sport." in card.text
    assert "budget was missed" not in card.text


def test_a_missed_budget_is_a_limit():
    text = model_card(changed(budget__met=False, budget__reached=2.5))
    assert "- The budget was not met: 3.00x asked, 2.50x on validation: MISSED" in text


def test_it_names_the_command_and_the_run(card):
    assert "```bash\npython train.py method=top task=bbc_news\n```\n\nRun `0a1b2c3d`." in card.text


def test_the_card_of_a_dense_model_promises_no_pruning():
    card = ModelCard(model_card(changed(method="dense", speed=[])))
    assert "no token is pruned" in card.text
    assert "fewer" not in card.text
    assert "Speed" not in card.text


def test_a_model_that_decides_on_no_token_is_the_same_without_prunekit():
    text = model_card(changed(method="layers"), drops_tokens=False)
    assert "made cheaper by the method `layers`: " in text
    assert "`AutoModelForSequenceClassification.from_pretrained(...)` loads the same model." in text
    assert "dense** model" not in text
    assert "as large as the dense model's" not in text
    assert "token-pruning" not in text
    cut = model_card(changed(method="truncate"), drops_tokens=False, longest=48)
    assert "the same model; cut its texts, with `truncation=True, max_length=48` for the tokenizer." in cut
