import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.weights.masks import Groups, is_nm, keep_mask, keep_masks, removed_count


@pytest.mark.parametrize(("sparsity", "size", "count"), [(0.5, 7, 3), (0.29, 100, 29), (0.0, 5, 0), (1.0, 5, 5)])
def test_counts_are_the_floor_of_the_share(sparsity, size, count):
    assert removed_count(sparsity, size) == count


def test_among_equal_scores_the_earlier_is_removed_and_never_too_many():
    assert keep_mask(torch.zeros(1, 4), 0.5, Groups("matrix")).tolist() == [[False, False, True, True]]
    # the rule "score <= threshold" would remove 4 of these 6
    score = torch.tensor([[1.0, 1, 1], [1, 5, 6]])
    assert int((~keep_mask(score, 0.5, Groups("matrix"))).sum()) == 3


def test_matrix_and_row_groups_differ():
    score = torch.tensor([[1.0, 2, 3, 4], [10, 20, 30, 40]])
    assert keep_mask(score, 0.5, Groups("matrix")).tolist() == [[False] * 4, [True] * 4]
    assert keep_mask(score, 0.5, Groups("row")).tolist() == [[False, False, True, True]] * 2


def test_weights_compete_within_their_column_block():
    score = torch.tensor([[1.0, 2, 30, 40, 5], [3, 4, 10, 20, 6]])
    found = keep_mask(score, 0.5, Groups("column_block", width=2))
    assert found.tolist() == [[False, False, True, True, False], [True, True, False, False, True]]


def test_2_of_4_by_hand():
    score = torch.tensor([[0.1, 0.9, 0.3, 0.2, 0, 0.5, 0.5, 0.5]])
    found = keep_mask(score, 0.5, Groups("nm", keep=2, of=4))
    assert found.int().tolist() == [[0, 1, 1, 0, 0, 0, 1, 1]]
    assert is_nm(found)
    assert not is_nm(torch.ones(1, 4, dtype=torch.bool))


def test_global_groups_prune_the_least_important_matrix_first_up_to_the_cap():
    scores = {"a": torch.tensor([[1.0, 1, 1, 37]]), "b": torch.tensor([[10.0, 10, 10, 10]])}
    half = dict.fromkeys(scores, 0.5)
    found = keep_masks(scores, half, Groups("global", max_sparsity=0.75))
    assert {name: int((~mask).sum()) for name, mask in found.items()} == {"a": 3, "b": 1}
    tight = keep_masks(scores, half, Groups("global", max_sparsity=0.5))
    assert {name: int((~mask).sum()) for name, mask in tight.items()} == {"a": 2, "b": 2}


def test_the_scale_of_a_matrix_does_not_matter_under_global_groups():
    scores = {"a": torch.tensor([[1.0, 2, 3, 4]]), "b": torch.tensor([[100.0, 200, 300, 400]])}
    found = keep_masks(scores, dict.fromkeys(scores, 0.5), Groups("global"))
    assert found["a"].equal(found["b"])


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 12),
    sparsity=st.floats(0, 1),
    kind=st.sampled_from(["matrix", "column_block", "row"]),
    width=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_group_loses_exactly_its_share(rows, columns, sparsity, kind, width, seed):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 4, (rows, columns), generator=generator).float()  # many ties
    groups = Groups(kind, width=width)
    removed = ~keep_mask(score, sparsity, groups)
    parts = {"matrix": [removed], "row": list(removed), "column_block": list(removed.split(width, dim=1))}[kind]
    assert [int(part.sum()) for part in parts] == [removed_count(sparsity, part.numel()) for part in parts]


def test_a_higher_sparsity_removes_a_superset():
    score = torch.randn(8, 16)
    less, more = (keep_mask(score, s, Groups("column_block", n_blocks=4)) for s in (0.3, 0.6))
    assert bool((less | ~more).all())


def test_a_cap_is_a_whole_number_of_weights():
    """0.9 of three is 2, so at most 4 of the 6 weights of two such matrices can be removed, while 0.9 of 6 is 5."""
    scores = {name: torch.arange(3.0)[None] + 1 for name in ("a", "b")}
    with pytest.raises(ValueError, match="more than max_sparsity"):
        keep_masks(scores, {"a": 0.9, "b": 0.9}, Groups("global", max_sparsity=0.9))
    found = keep_masks(scores, {"a": 0.7, "b": 0.7}, Groups("global", max_sparsity=0.9))
    assert sum(int((~mask).sum()) for mask in found.values()) == 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: keep_mask(torch.ones(2, 2), 1.5), "sparsity 1.5 is out of range"),
        (lambda: keep_mask(torch.tensor([[math.nan, 1]]), 0.5), "1 of 2 scores are NaN"),
        (lambda: keep_mask(torch.ones(2, 4), 0.4, Groups("nm")), "2:4 has sparsity 0.5, not 0.4"),
        (lambda: keep_mask(torch.ones(2, 6), 0.5, Groups("nm")), "4 divides, but a matrix has 6"),
        (lambda: keep_mask(torch.ones(2, 6), 0.5, Groups("global")), "use keep_masks"),
        (
            lambda: keep_masks({"a": torch.ones(2, 2)}, {"a": 0.95}, Groups("global")),
            "sparsity 0.95 is more than max_sparsity=0.9",
        ),
    ],
)
def test_impossible_masks_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
