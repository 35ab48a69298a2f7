import pytest
import torch
from safetensors.torch import save_file

from prunekit.weights.storage import (
    load_compact,
    load_masks,
    pack_bits,
    save_compact,
    save_masks,
    sparsity_report,
    unpack_bits,
)


def test_bits_are_little_endian_along_columns():
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0]]).bool()
    assert pack_bits(mask).tolist() == [[77, 3]]
    assert unpack_bits(pack_bits(mask), 11).equal(mask)


def test_masks_are_read_back_unchanged(tmp_path):
    masks = {"a.b": torch.rand(3, 11) > 0.5, "c": torch.rand(2, 8) > 0.5}
    save_masks(masks, tmp_path / "masks.safetensors", {"sparsity": "0.5"})
    found = load_masks(tmp_path / "masks.safetensors")
    assert list(found) == ["a.b", "c"]
    assert all(found[name].equal(mask) for name, mask in masks.items())


def test_a_transposed_mask_comes_back(tmp_path):
    mask = (torch.rand(40, 11) > 0.5).T
    save_masks({"a": mask}, tmp_path / "masks.safetensors")
    assert load_masks(tmp_path / "masks.safetensors")["a"].equal(mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compact_form_is_exact_even_for_kept_zeros(dtype, tmp_path):
    torch.manual_seed(0)
    weight, mask = torch.randn(64, 128).to(dtype), torch.rand(64, 128) > 0.5
    mask[0, :2] = True
    weight[0, 0], weight[0, 1] = 0.0, -0.0
    weight = weight * mask
    weight[0, 1] = -0.0
    save_compact({"a": weight}, {"a": mask}, tmp_path / "compact.safetensors")
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    found = load_compact(tmp_path / "compact.safetensors")["a"]
    assert found[mask].view(bits).equal(weight[mask].view(bits))
    assert bool((found[~mask] == 0).all())


def test_in_bf16_half_of_the_weights_take_nine_sixteenths(tmp_path):
    mask = torch.arange(512 * 512).reshape(512, 512) % 2 == 0
    save_compact({"a": torch.randn(512, 512).bfloat16()}, {"a": mask}, tmp_path / "c")
    dense = 512 * 512 * 2
    assert (tmp_path / "c").stat().st_size / dense == pytest.approx(0.5625, abs=0.002)


def test_a_file_in_another_format_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="has format None None, not prunekit-mask 1"):
        load_masks(tmp_path / "x.safetensors")


def test_the_report_gives_sparsity_per_matrix_of_prunable_weights_and_of_the_model():
    masks = {"a": torch.tensor([[True, False, False, False]]), "b": torch.tensor([[True, False]])}
    found = sparsity_report(masks, total=20)
    assert (found["matrix_min"], found["matrix_max"], found["matrix_mean"]) == (0.5, 0.75, 0.625)
    assert found["of_prunable"] == pytest.approx(4 / 6)
    assert found["of_model"] == pytest.approx(0.2)
