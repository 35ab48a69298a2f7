import pytest
import torch
from support.tiny_decoders import texts, tiny_decoder

from prunekit.weights.decoder import all_matrices, prunable_matrices, weight_of
from prunekit.weights.enforce import MaskEnforcer
from prunekit.weights.gradients import next_token_loss
from prunekit.weights.importance import magnitude_score
from prunekit.weights.masks import Groups, keep_mask


def masked(family="llama"):
    model = tiny_decoder(family)
    matrices = all_matrices(prunable_matrices(model))
    masks = {n: keep_mask(magnitude_score(weight_of(m)), 0.5, Groups("row")).clone() for n, m in matrices.items()}
    return model, masks


def train(model, optimizer, steps=3):
    for _ in range(steps):
        sample = texts()[0]
        optimizer.zero_grad()
        next_token_loss(model(**sample.inputs).logits, sample).backward()
        optimizer.step()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_removed_weights_stay_zero_under_adamw_and_the_rest_learns(family):
    model, masks = masked(family)
    enforcer = MaskEnforcer(model, masks)
    before = {name: weight_of(module).detach().clone() for name, module, _ in enforcer.pairs}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    enforcer.watch(optimizer)
    train(model, optimizer)
    enforcer.check_zeros()
    assert all(not weight_of(module).equal(before[name]) for name, module, _ in enforcer.pairs)


def test_without_an_enforcer_they_become_nonzero_and_check_zeros_raises():
    model, masks = masked()
    enforcer = MaskEnforcer(model, masks)
    train(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    with pytest.raises(ValueError, match=r"removed weights of model\.layers\.0.* are no longer 0"):
        enforcer.check_zeros()


def test_check_zeros_detects_a_merged_lora():
    model, masks = masked()
    enforcer = MaskEnforcer(model, masks)
    name, module, _ = enforcer.pairs[0]
    with torch.no_grad():
        module.weight += torch.randn(32, 2) @ torch.randn(2, 32)
    with pytest.raises(ValueError, match="keep LoRA as an adapter"):
        enforcer.check_zeros()
    assert name == "model.layers.0.self_attn.q_proj"


def test_masks_of_another_model_are_refused():
    model, _ = masked()
    with pytest.raises(ValueError, match=r"mask of x has shape \(1, 1\), the model has no such matrix"):
        MaskEnforcer(model, {"x": torch.ones(1, 1).bool()})
    name = "model.layers.0.self_attn.q_proj"
    with pytest.raises(ValueError, match=r"has shape \(1, 1\), the model has \(32, 32\)"):
        MaskEnforcer(model, {name: torch.ones(1, 1).bool()})


def test_an_enforcer_that_only_checks_detects_weights_that_were_not_removed():
    """A pipeline checks before it saves, and the check must not fix what it should detect."""
    model, masks = masked()
    with pytest.raises(ValueError, match="are no longer 0"):
        MaskEnforcer(model, masks, apply=False).check_zeros()
    MaskEnforcer(model, masks)
    MaskEnforcer(model, masks, apply=False).check_zeros()


class Adapted(torch.nn.Module):
    """A frozen linear layer with a low-rank adapter."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = torch.nn.Parameter(torch.randn(2, base.in_features) * 0.1)
        self.up = torch.nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


def test_an_adapter_learns_while_removed_weights_stay_zero():
    model, masks = masked()
    enforcer = MaskEnforcer(model, masks)  # before the adapters, which rename the matrices
    adapters = []
    for layer in model.model.layers:
        layer.self_attn.q_proj = Adapted(layer.self_attn.q_proj)
        adapters.append(layer.self_attn.q_proj)
    optimizer = torch.optim.AdamW([p for a in adapters for p in (a.down, a.up)], lr=0.01, weight_decay=0.1)
    enforcer.watch(optimizer)
    train(model, optimizer)
    enforcer.check_zeros()
    assert all(adapter.up.abs().sum() > 0 for adapter in adapters)
