"""The keys of a task other than its kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TaskKeys:
    """The keys of conf/task/*.yaml, where each is explained, without `kind`, which decides what the others mean.

    `labels` None means that the labels are read from the training data. Lengths are in tokens, special tokens included.
    The first of `validation_splits` is called "validation" from here on, further ones keep their names.
    `dataset` is what task=hub reads: an id of the hub, or a folder; `subset` is what the hub calls a configuration.
    A question's answer is a part of `text_pair`; a long one is read in windows that overlap by `stride` tokens.
    `null_threshold` None means the one with the best score on the validation split.
    Of a translation `text` is the source and `label` the target, each cut at its longest length; a column of records
    is named with its field, as in translation.en. The languages are those that a backbone's prefix names.
    Of several labels per text, `label_columns` are columns of 0 and 1, one for each, which a file names as a list in
    `label`. `thresholds` are the probabilities from which a text has each label, () where `tune_thresholds` leaves them
    to the validation split; without it they are 0.5.
    `class_weights` are factors of the loss on labels, in the order of the classes; "balanced" leaves them to the data.
    Rows with the same value in the column `group` are in the same split. `pooling` says which tokens of a text make
    its vector.
    `protect` is the run's, not of a task's file: with "first_segment" no method drops a token of a pair's first text.
    """

    name: str
    budget: str | float | None = None  # the default of the run's
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    label_columns: tuple[str, ...] = ()
    label_separator: str | None = None
    labels: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ()
    score: str = ""
    max_length: int = 128
    padded_length: int = 128
    train_split: str = "train"
    validation_splits: tuple[str, ...] = ()
    test_split: str | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.0
    empty: Literal["error", "drop", "keep"] = "error"
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    unlabelled: Literal["error", "drop", "none"] = "error"
    contradicting: Literal["keep", "drop", "error"] = "keep"
    group: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    dataset: str | None = None
    subset: str | None = None
    revision: str | None = None
    folder: str | None = None
    package: str | None = None
    package_folder: str | None = None
    file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None
    synthetic_rows: int | None = None
    id: str | None = None
    stride: int = 128
    max_answer_tokens: int = 30
    unanswerable: bool = False
    null_threshold: float | None = None
    tune_thresholds: bool = False
    thresholds: tuple[float, ...] = ()
    protect_question: bool = False
    pooling: Literal["kept", "all"] = "kept"
    protect: Literal["none", "first_segment"] = "none"
    source_language: str | None = None
    target_language: str | None = None
    max_target_length: int = 128
    beams: int = 4
