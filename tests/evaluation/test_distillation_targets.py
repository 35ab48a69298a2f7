"""A teacher's outputs are computed once per row, and looked up by row number in any batch."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import sentences, tiny_model
from support.paths import visible

from prunekit.evaluation import distillation_targets
from prunekit.evaluation.distillation_targets import RowLogits, TeacherOutputs, TokenLogits, WordLogits, teacher_outputs
from prunekit.models.heads import MASKED_LOGIT
from prunekit.tokens.encoder import install
from prunekit.tokens.state import Trace

LENGTHS = [9, 4, 7]


def outputs():
    model = install(tiny_model(), None, "dense")
    batch = sentences(LENGTHS)
    first = {name: tensor[[2, 0]] for name, tensor in batch.items()} | {"index": torch.tensor([2, 0])}
    second = {name: tensor[[1], :4] for name, tensor in batch.items()} | {"index": torch.tensor([1])}
    return model, batch, teacher_outputs(model, [first, second], torch.tensor(LENGTHS))


def test_ranks_follow_the_last_layer_and_leave_out_cls_and_padding():
    model, batch, found = outputs()
    trace = Trace.scoring([3])
    with torch.no_grad():
        logits = model(**batch, execution="dense", trace=trace).logits
    torch.testing.assert_close(found.logits.logits, logits, atol=1e-5, rtol=0)
    _, ranks = found.batch(torch.tensor([0, 1, 2]), 9)
    for row, length in enumerate(LENGTHS):
        scores = trace.layers[3].received[row, 1:length]
        assert ranks[row, 0] == -1
        assert ranks[row, length:].tolist() == [-1] * (9 - length)
        assert ranks[row, 1:length].argsort().tolist() == scores.argsort(descending=True).tolist()


def test_a_batch_takes_rows_in_any_order_and_any_width():
    outputs = TeacherOutputs(
        logits=RowLogits(torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
        ranks=torch.tensor([-1, 1, 0, -1, 0], dtype=torch.int16),
        offsets=torch.tensor([0, 3, 5]),
    )
    logits, ranks = outputs.batch(torch.tensor([1, 0]), 4)
    assert logits.tolist() == [[3, 4], [1, 2]]
    assert ranks.tolist() == [[-1, 0, -1, -1], [-1, 1, 0, -1]]


def test_saved_outputs_are_read_back_as_they_were(tmp_path):
    _, _, found = outputs()
    found.save(tmp_path / "outputs.safetensors")
    again = TeacherOutputs.load(tmp_path / "outputs.safetensors")
    assert torch.equal(again.logits.logits, found.logits.logits)
    assert torch.equal(again.ranks, found.ranks)
    assert visible(tmp_path) == ["outputs.safetensors"]


def test_damaged_outputs_are_not_read_and_named(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(distillation_targets, "say", said.append)
    path = tmp_path / "outputs.safetensors"
    assert TeacherOutputs.load_if_whole(path) is None
    assert said == []
    outputs()[2].save(path)
    assert TeacherOutputs.load_if_whole(path) is not None
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the last number, which safetensors takes as it is
    path.write_bytes(content)
    assert TeacherOutputs.load_if_whole(path) is None
    wrong = "is not what was written: it was damaged, or changed by hand"
    assert said == [f"cache      {path} {wrong}; it is made again."]


@pytest.mark.parametrize(
    ("form", "stored"),
    [
        (RowLogits, {"logits": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}),
        (TokenLogits, {"logits": torch.arange(10.0).view(1, 5, 2)}),
        (
            WordLogits,
            {
                "logits": torch.tensor([[9.0], [8.0], [7.0]]),
                "ids": torch.tensor([[1], [0], [2]], dtype=torch.int32),
                "word_offsets": torch.tensor([0, 2, 3]),
                "vocabulary": torch.tensor(3),
            },
        ),
    ],
)
def test_outputs_stored_before_are_read_by_what_they_hold(tmp_path, form, stored):
    common = {"ranks": torch.tensor([-1, 1, 0, -1, 0], dtype=torch.int16), "offsets": torch.tensor([0, 3, 5])}
    save_file({**common, **stored}, tmp_path / "before.safetensors")
    found = TeacherOutputs.load(tmp_path / "before.safetensors")
    assert type(found.logits) is form
    assert all(torch.equal(getattr(found.logits, name), tensor) for name, tensor in stored.items())
    found.save(tmp_path / "after.safetensors")
    assert load_file(tmp_path / "after.safetensors").keys() == common.keys() | stored.keys()
    logits, ranks = found.batch(torch.tensor([1]), 3)
    assert ranks.tolist() == [[-1, 0, -1]]
    wanted = {
        RowLogits: [[3, 4]],
        TokenLogits: [[[6, 7], [8, 9], [MASKED_LOGIT] * 2]],
        WordLogits: [[MASKED_LOGIT, MASKED_LOGIT, 7]],
    }
    assert logits.tolist() == wanted[form]


def test_a_teacher_without_rows_is_refused():
    with pytest.raises(ValueError, match="given 0 batches"):
        teacher_outputs(install(tiny_model(), None), [], torch.tensor([], dtype=torch.long))
