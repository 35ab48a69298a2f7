"""The order of batches: a pure function of (seed, epoch, position)."""

import lightning.pytorch as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.data.encoding import EncodedSplit, LabelTargets
from prunekit.data.loading import FixedLoader, StepLoader, epoch_batches, fetch
from prunekit.data.ragged import Ragged


def split_of(lengths, labels=None):
    """Rows whose tokens are their own number plus 1, so that a batch shows which row is where."""
    return EncodedSplit(
        tokens=Ragged.of([number] * length for number, length in enumerate(lengths, 1)),
        targets=LabelTargets(torch.tensor(labels if labels is not None else [0] * len(lengths))),
        fingerprint="",
    )


def rows_of(batches):
    return [batch["index"].tolist() for batch in batches]


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=300)
sizes = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)


# -- a batch -----------------------------------------------------------------------------------------


def test_a_batch_is_padded_to_its_longest_row_and_names_its_rows():
    batch = split_of([2, 4, 1], labels=[7, 8, 9]).batch(torch.tensor([2, 0]))
    assert batch["input_ids"].tolist() == [[3, 0], [1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["labels"].tolist() == [9, 7]
    assert batch["index"].tolist() == [2, 0]
    assert "token_type_ids" not in batch


def test_segments_come_along_where_the_model_has_them():
    split = EncodedSplit(
        tokens=Ragged.of([[5], [6, 7]]),
        targets=LabelTargets(torch.tensor([0.5, 1.5])),
        fingerprint="",
        segments=Ragged.of([[0], [0, 1]]),
    )
    assert split.batch(torch.tensor([1, 0]))["token_type_ids"].tolist() == [[0, 1], [0, 0]]


@given(lengths, sizes, seeds)
@settings(max_examples=30, deadline=None)
def test_padding_never_exceeds_the_longest_row_of_the_batch(lengths, size, seed):
    split = split_of(lengths)
    for batch in StepLoader(split, size, seed):
        assert batch["input_ids"].shape[1] == max(lengths[row] for row in batch["index"].tolist())
        assert batch["attention_mask"].sum(1).tolist() == [lengths[row] for row in batch["index"].tolist()]


# -- an epoch ----------------------------------------------------------------------------------------


@given(lengths, sizes, seeds, st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_every_row_comes_exactly_once_per_epoch(lengths, size, seed, epoch):
    batches = epoch_batches(torch.tensor(lengths), size, seed, epoch)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    assert sorted(map(len, batches))[1:] == [size] * (len(batches) - 1)


@given(lengths, sizes, seeds)
@settings(max_examples=30, deadline=None)
def test_the_same_seed_and_epoch_give_the_same_order(lengths, size, seed):
    first = epoch_batches(torch.tensor(lengths), size, seed, 3)
    assert all(map(torch.equal, first, epoch_batches(torch.tensor(lengths), size, seed, 3)))


def test_epochs_and_seeds_differ_in_their_order():
    lengths = torch.arange(1, 101)
    orders = {
        str([batch.tolist() for batch in epoch_batches(lengths, 4, seed, epoch)])
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_the_order_is_the_same_on_every_machine_and_in_every_version():
    batches = epoch_batches(torch.tensor([5, 1, 4, 2, 3, 6, 8, 7]), 3, seed=1, epoch=0)
    assert [batch.tolist() for batch in batches] == [[2, 0, 5], [1, 3, 4], [7, 6]]


def test_batches_hold_rows_of_similar_length():
    lengths = torch.arange(1000) % 50 + 1
    batches = epoch_batches(lengths, 10, 0, 0)
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert padded / int(lengths.sum()) < 1.05  # unsorted batches of 10 pad by 80 %


@given(lengths, sizes, st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_processes_share_an_epoch_and_have_equally_many_batches(lengths, size, world):
    shares = [epoch_batches(torch.tensor(lengths), size, 5, 1, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    rows = [row for share in shares for batch in share for row in batch.tolist()]
    assert set(rows) == set(range(len(lengths)))
    whole = epoch_batches(torch.tensor(lengths), size, 5, 1)
    assert sum(map(len, shares)) == len(whole) + -len(whole) % world
    loader = StepLoader(split_of(lengths), size, 5, rank=world - 1, world=world)
    assert len(loader) == len(shares[0]) == len(list(loader))


def test_evaluation_batches_come_in_one_order_with_every_row_once():
    loader = FixedLoader(split_of([3, 1, 4, 1, 5, 9, 2, 6]), 3)
    assert rows_of(loader) == rows_of(loader)
    assert sorted(row for rows in rows_of(loader) for row in rows) == list(range(8))
    assert len(loader) == len(rows_of(loader)) == 3
    widths = sorted(batch["input_ids"].shape[1] for batch in loader)
    assert widths[-1] == 9
    assert sum(widths) <= 16  # at most 9 + 5 + 2: sorted over the whole split


# -- resuming ----------------------------------------------------------------------------------------


def uninterrupted(lengths, size, seed, epochs=3):
    loader = StepLoader(split_of(lengths), size, seed)
    return [rows for _ in range(epochs) for rows in rows_of(loader)]


@given(lengths, sizes, seeds, st.data())
@settings(max_examples=50, deadline=None)
def test_from_any_position_the_rest_is_the_tail_of_the_uninterrupted_sequence(lengths, size, seed, data):
    whole = uninterrupted(lengths, size, seed)
    position = data.draw(st.integers(0, len(whole) - 1))
    resumed = StepLoader(split_of(lengths), size, seed)
    resumed.load_state_dict({"position": position})
    seen = []
    while len(seen) < len(whole) - position:
        seen += rows_of(resumed)
    assert seen == whole[position:]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("taken", [1, 4, 7])
def test_the_state_counts_what_was_consumed_not_what_workers_prepared(workers, taken):
    lengths = [1 + row % 9 for row in range(27)]  # 7 batches of 4
    loader = StepLoader(split_of(lengths), 4, 11, workers=workers)
    iterator = iter(loader)
    seen = rows_of(next(iterator) for _ in range(taken))
    assert loader.state_dict() == {"position": taken}
    resumed = StepLoader(split_of(lengths), 4, 11, workers=workers)
    resumed.load_state_dict(loader.state_dict())
    seen += rows_of(resumed) if taken < 7 else []
    assert seen == uninterrupted(lengths, 4, 11, epochs=1)


def test_an_iterator_that_is_made_and_dropped_changes_nothing():
    loader = StepLoader(split_of([1, 2, 3, 4]), 2, 0)
    iter(loader)
    assert loader.state_dict() == {"position": 0}
    assert rows_of(loader) == uninterrupted([1, 2, 3, 4], 2, 0, epochs=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generator_alone(workers):
    before = torch.get_rng_state()
    list(StepLoader(split_of([3] * 20), 4, 0, workers=workers))
    list(FixedLoader(split_of([3] * 20), 4, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_batches_need_no_workers():
    assert list(fetch(split_of([1]), [], workers=2)) == []


class Net(L.LightningModule):
    """Embeddings, dropout and AdamW: any batch in another place, or any random draw, changes the weights."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.EmbeddingBag(60, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.layers(batch["input_ids"]), batch["labels"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class RngOfTorch(L.Callback):
    """Carries torch's generator over a resume, as the project's own callback does."""

    state = None

    def state_dict(self):
        return {"torch": torch.get_rng_state()}

    def load_state_dict(self, state):
        self.state = state["torch"]

    def on_train_batch_start(self, *unused):
        if self.state is not None:
            torch.set_rng_state(self.state)
            self.state = None


class CutAt(L.Callback):
    """Saves a checkpoint when a step ends, then dies as by kill -9."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *unused):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def fit(tmp_path, workers, *, cut=None, resume=False):
    torch.manual_seed(0)
    net, path = Net(), tmp_path / "cut.ckpt"
    data = split_of([1 + row % 9 for row in range(37)], labels=[row % 2 for row in range(37)])
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RngOfTorch(), *([CutAt(cut, path)] if cut else [])],
    )
    loader = StepLoader(data, 4, seed=3, workers=workers)
    try:
        trainer.fit(net, loader, ckpt_path=path if resume else None)
    except (KeyboardInterrupt, SystemExit):
        assert cut
    return net, trainer


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("cut", [1, 7, 10, 13, 20, 29])  # epochs end after 10, 20 and 30 steps
def test_lightning_resumes_to_the_same_weights_bit_for_bit(tmp_path, workers, cut):
    whole, trainer = fit(tmp_path, 0)
    assert trainer.global_step == 30
    fit(tmp_path, workers, cut=cut)
    resumed, trainer = fit(tmp_path, workers, resume=True)
    assert trainer.global_step == 30
    assert trainer.current_epoch == 3
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, resumed.state_dict()[name]), name
