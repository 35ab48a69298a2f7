"""The Lightning DataModule of a task: read, check, encode, and hand out batches in an order that can be resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
from jaxtyping import Float
from torch import Tensor

from prunekit.config.places import cache_folder
from prunekit.data.bands import Band, resolve, rows_between
from prunekit.data.columns import prefixed
from prunekit.data.encoding import EncodedSplit, Encoder, load_tokenizer
from prunekit.data.errors import DataError
from prunekit.data.given import task_of
from prunekit.data.loading import FixedLoader, StepLoader, generator_of, permutation
from prunekit.data.reading import read_task
from prunekit.data.rows import Rows, TaskRows
from prunekit.data.sources import TaskSource, find_task
from prunekit.data.spec import TaskSpec
from prunekit.data.vocabulary import COUNTED, unknown_share, without_tokenless

# from the name of a split and the split to the labels of its rows
Answers = Callable[[str, EncodedSplit], Float[Tensor, "rows outputs"]]


class TokenPruningDataModule(L.LightningDataModule):
    """A task, tokenised for one backbone.

    Splits are "train", "validation", further validation splits by their own names, and "test", which is "validation"
    where the task has no labelled test. A batch is a dict of `input_ids`, `attention_mask`, `token_type_ids` (where
    the model has them), `labels` and `index`, the row numbers in the split, and what the kind of task adds (the split's
    `targets` say what); it is padded to its longest row. `prefix` precedes every text, for backbones that are told
    the task in words.
    """

    def __init__(
        self,
        spec: TaskSpec,
        source: TaskSource,
        tokenizer_path: str | Path,
        *,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        task: TaskRows | None = None,
        train_rows: int | None = None,
        eval_rows: int | None = None,
        train_band: Sequence[int | str] | None = None,
        eval_bands: Sequence[int | str] | None = None,
        workers: int = 0,
        num_proc: int = 1,
        cache_dir: str | Path | None = None,
        prefix: str = "",
        answers: Answers | None = None,
    ) -> None:
        """Prepare a module that has encoded nothing yet; `task` is what was read from the source already.

        `answers` are asked for the labels of each split of a task that has none: a row of numbers per text.

        `train_rows` takes the first rows of an order drawn from `seed`, `eval_rows` of a fixed one.

        `train_band` restricts training and validation to texts of these lengths, `eval_bands` the test; ends are
        tokens, or quantiles of the lengths of all training texts (`bands.resolve`). `cache_dir` None means the user's
        cache folder; `num_proc` processes tokenise.
        """
        super().__init__()
        self.spec = spec
        self.source = source
        self.tokenizer_path = tokenizer_path
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self._task = task
        self.train_rows = train_rows
        self.eval_rows = eval_rows
        self.train_band = train_band
        self.eval_bands = eval_bands
        self.workers = workers
        self.num_proc = num_proc
        self.cache_dir = Path(cache_dir) if cache_dir is not None else cache_folder()
        self.prefix = prefix
        self.answers = answers
        self.prefix_tokens = 0
        self.label_names: tuple[str, ...] | None = None
        self.dropped: dict[str, int] = {}
        self.noticed: dict[str, int] = {}
        self.unknown_share = 0.0  # of the training tokens
        self.bands: list[tuple[Band, EncodedSplit]] = []  # the parts of the test that `eval_bands` asks for
        self._own_test = False
        self._splits: dict[str, EncodedSplit] = {}

    @classmethod
    def from_rows(
        cls,
        rows: Any,
        tokenizer_path: str | Path,
        *,
        text: str = "text",
        label: str | Sequence[str] = "label",
        task: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        seed: int = 1,
        cache_dir: str | Path | None = None,
        **settings: Any,
    ) -> TokenPruningDataModule:
        """Prepare a module of rows given from Python: a frame, a Dataset, a list of dicts, or several as splits.

        `task` are further keys of the task, as {"max_length": 256, "kind": "regression"}; `settings` are those above.

        Raises:
            DataError: the rows cannot be used; `data.given.task_of` says what is allowed.
            ConfigError: a key that no task has.
        """
        keys = task_of(rows, text=text, label=label, cache_dir=cache_dir, **(task or {}))
        spec = TaskSpec.from_config({"name": "rows", **keys})
        return cls(
            spec,
            find_task(spec),
            tokenizer_path,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            cache_dir=cache_dir,
            **settings,
        )

    def setup(self, stage: str | None = None) -> None:
        """Read and encode every split; a second call does nothing.

        Raises:
            DataError: something is wrong with the data; the message names file and row.
        """
        if self._splits:
            return
        task = self._task or read_task(self.spec, self.source, self.cache_dir)
        self._task = None  # what is in use is in the encoded splits
        tokenizer = load_tokenizer(self.tokenizer_path)
        task = without_tokenless(self.spec, task, tokenizer)
        tokens, protects = self.cache_dir / "tokens", self.spec.protects_first
        encoder = Encoder(tokenizer, self.spec.max_length, tokens, self.num_proc, protects)
        self.label_names = task.label_names
        self.dropped = dict(task.dropped)
        self.noticed = dict(task.noticed)
        self._own_test = "test" in task.splits

        if self.prefix:
            self.prefix_tokens = len(tokenizer(self.prefix.strip(), add_special_tokens=False)["input_ids"])

        def encode(rows: Rows[Any]) -> EncodedSplit:
            read = replace(rows, texts=prefixed(self.prefix, rows.texts)) if self.prefix else rows
            return self.spec.kind.encode(self.spec, read, encoder, task.label_names, self.prefix_tokens)

        def answered(name: str, rows: Rows[Any]) -> EncodedSplit:
            split = encode(rows)
            if self.answers is None:
                return split
            return replace(split, targets=split.targets.answered(self.answers(name, split)))

        chosen, bands = self._choose_by_length(task.splits, encode)
        limited = {name: self._limit(name, rows) for name, rows in chosen.items()}
        self._splits = {name: answered(name, rows) for name, rows in limited.items()}
        train = self._splits["train"]
        self.unknown_share = unknown_share(map(train.row, range(min(len(train), COUNTED))), tokenizer)
        if bands:
            lengths = self._splits["test"].lengths
            parts = [rows_between("data.eval_bands", "test", lengths, [band]) for band in bands]
            taken = [(band, limited["test"].take(part)) for band, part in zip(bands, parts, strict=True)]
            self.bands = [(band, answered(f"test, band {band.low}", rows)) for band, rows in taken]

    def _choose_by_length(
        self, splits: Mapping[str, Rows[Any]], encode: Callable[[Rows[Any]], EncodedSplit]
    ) -> tuple[dict[str, Rows[Any]], list[Band]]:
        """Return the rows of the lengths that are asked for, and the bands of the test.

        Where the task has no test of its own and bands make it differ from validation, "test" is added: validation
        rows of all, or of the test's, lengths.
        """
        chosen = dict(splits)
        if self.train_band is None and self.eval_bands is None:
            return chosen, []
        if refusal := self.spec.kind.bands_refusal(self.spec, tested=self.eval_bands is not None):
            raise DataError(refusal)
        longest = self.spec.max_length
        lengths = {name: encode(rows).lengths for name, rows in splits.items()}
        tested = "test" if self._own_test else "validation"
        chosen["test"] = splits[tested]
        if self.train_band is not None:
            key = "data.train_band"
            trained = resolve(key, self.train_band, lengths["train"], longest)
            for name in ("train", "validation"):
                chosen[name] = splits[name].take(rows_between(key, name, lengths[name], trained))
        if self.eval_bands is None:
            return chosen, []
        key = "data.eval_bands"
        bands = resolve(key, self.eval_bands, lengths["train"], longest)
        chosen["test"] = splits[tested].take(rows_between(key, tested, lengths[tested], bands))
        return chosen, bands

    def _limit(self, name: str, rows: Rows[Any]) -> Rows[Any]:
        limit = self.train_rows if name == "train" else self.eval_rows
        if limit is None or limit >= len(rows):
            return rows
        # evaluation rows do not depend on the seed: runs that differ in it are compared on the same rows
        key = ("train rows", self.seed) if name == "train" else ("evaluation rows",)
        return rows.take(np.sort(permutation(len(rows), generator_of(*key))[:limit].numpy()))

    def split(self, name: str) -> EncodedSplit:
        """Return an encoded split.

        Raises:
            DataError: the task has no split of this name.
        """
        self._check_ready()
        if name == "test" and name not in self._splits:
            name = "validation"
        if name not in self._splits:
            raise DataError(f"task {self.spec.name} has no split {name!r}; it has {', '.join(self._splits)}.")
        return self._splits[name]

    @property
    def has_test(self) -> bool:
        """Whether the task has test rows of its own; otherwise "test" is "validation"."""
        return self._own_test

    @property
    def validation_splits(self) -> tuple[str, ...]:
        """The names of the validation splits, in the order of the validation loaders."""
        return tuple(name for name in self._splits if name not in ("train", "test"))

    @property
    def num_labels(self) -> int:
        """Outputs of the model's head: classes, 1 where there are none, or 2 for an answer's first and last token."""
        return self.spec.kind.output_count(self.label_names)

    @property
    def fingerprint(self) -> str:
        """Hex digest of the rows in use, their labels, the tokenizer and the length; equal means equal batches."""
        self._check_ready()
        parts = "\n".join(f"{name} {split.fingerprint}" for name, split in self._splits.items())
        return hashlib.sha256(f"{self.label_names}\n{parts}".encode()).hexdigest()

    @property
    def truncated(self) -> dict[str, dict[str, int]]:
        """Per split how many of its rows were cut at `max_length` tokens, and what of them is judged nevertheless."""
        self._check_ready()
        return {
            name: {"rows": split.truncated, "of": len(split), "max_length": self.spec.max_length, **split.targets.cut}
            for name, split in self._splits.items()
        }

    def loader(self, split: str, batch_size: int | None = None) -> FixedLoader:
        """Return batches of a split in an order that never changes; rows are identified by `index`."""
        return FixedLoader(self.split(split), batch_size or self.eval_batch_size, workers=self.workers)

    def band_loader(self, number: int) -> FixedLoader:
        """Return batches of one of `bands`."""
        return FixedLoader(self.bands[number][1], self.eval_batch_size, workers=self.workers)

    def train_dataloader(self) -> StepLoader:
        """Return training batches from the first on; Lightning saves and restores the position."""
        trainer: Any = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        return StepLoader(self.split("train"), self.batch_size, self.seed, workers=self.workers, rank=rank, world=world)

    def val_dataloader(self) -> list[FixedLoader]:
        """Return a loader per validation split; each of several processes reads all rows, which changes no metric."""
        return [self.loader(name) for name in self.validation_splits]

    def test_dataloader(self) -> FixedLoader:
        """Return batches of the test split, or of validation where there is none."""
        return self.loader("test")

    def _check_ready(self) -> None:
        if not self._splits:
            raise RuntimeError("the data is not read yet; call setup() first.")
