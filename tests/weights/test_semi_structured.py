"""2:4 weights: the pattern on any machine, torch's format where a GPU supports it."""

import pytest
import torch
from support.weight_runs import run_small

from prunekit.weights.masks import Groups, is_nm, keep_mask
from prunekit.weights.semi_structured import check_conversion, unsupported_reason

NO_GPU = unsupported_reason("cuda")


def two_of_four(rows=64, columns=128):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return weight * keep_mask(weight.abs(), 0.5, Groups("nm", keep=2, of=4))


def test_a_2_of_4_mask_is_recognised():
    weight = two_of_four()
    assert is_nm(weight != 0)
    assert int((weight != 0).sum()) == 64 * 128 // 2


def test_a_weight_that_is_not_2_of_4_is_refused_before_it_loses_anything():
    weight = two_of_four()
    weight[0, :4] = torch.tensor([1.0, 2, 3, 0])
    with pytest.raises(ValueError, match=r"a weight of \(64, 128\) is not 2:4"):
        check_conversion(weight)


def test_without_a_gpu_the_reason_is_given():
    assert check_conversion(two_of_four(), "cpu") == "no CUDA device: torch's semi-structured tensors need one"


def test_a_run_reports_how_many_matrices_converted_and_why_others_did_not(tmp_path):
    result, path = run_small(tmp_path, "method=magnitude", "method.group=nm")
    assert result.two_of_four
    found = result.semi_structured
    assert found.matrices == 28
    assert (found.converted == 28) == (found.why_not is None)
    assert f"took {found.converted} of 28 matrices" in (path / "model" / "README.md").read_text()


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))
def test_on_a_gpu_a_2_of_4_weight_converts_and_multiplies_correctly():
    assert check_conversion(two_of_four(), "cuda") is None
