"""The conformance suite: what every token-pruning method keeps to, prunekit's own and those of other packages.

    from prunekit.conformance import MethodConformance

    class TestEntropy(MethodConformance):
        overrides = ["method=entropy"]

Each check builds the method as a run does, on a tiny random model and generated sentences. A failure says what
differed, at which layer and row, and what usually causes it. For tests only: nothing in prunekit imports this file,
and no other file imports pytest.
"""

from __future__ import annotations

import atexit
import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NoReturn, get_args

import pytest
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from prunekit import pretrained
from prunekit.checkpoint import LAST
from prunekit.config import ConfigError, compose, validate
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.sources import find_backbone, find_task
from prunekit.data.spec import TaskSpec
from prunekit.evaluation import Batch
from prunekit.kinds import method_options
from prunekit.methods.base import TokenPruningMethod
from prunekit.pipeline import Pipeline, method_class
from prunekit.runs import RunFolder
from prunekit.runtime.engine import PackedEngine
from prunekit.tokens.encoder import TokenPruner, encoder_of, install
from prunekit.tokens.state import Execution, Trace

__all__ = ["MethodConformance"]

HARD: tuple[Execution, ...] = ("mask", "drop", "pack")
DECIDING: tuple[Execution, ...] = ("mask", "soft", "drop", "pack")
TOLERANCE = 1e-4  # of logits and hidden states in float32, between two ways to compute the same
LENGTHS = (20, 13, 7, 1, 20, 3)  # tokens per row: equal ones, very short ones, and padding for most
# a whole run in a second: 16 steps in two epochs
SMALL = (
    "task=synthetic",
    "task.synthetic_rows=32",
    "backbone=tiny",
    "trainer=debug",
    "bench.enabled=false",
    "budget=1.5x",
)
INTERRUPTIONS = (5, 11)  # steps of those 16, one in each epoch: stages tend to change between epochs
# how far parameters are moved from their start until the method prunes; 0 leaves them
SCALES = (0.0, 0.3, 1.0, 3.0, 10.0)
TRIES = 3  # random draws per scale


class MethodConformance:
    """The checks. Inherit it, name the method in `overrides`, and pytest collects them.

    A method that takes no budget says in `nothing_pruned` with which values of its own knob it prunes nothing.
    """

    overrides: ClassVar[Sequence[str]] = ()  # as on the command line: ["method=entropy", "method.share=0.5"]
    nothing_pruned: ClassVar[Sequence[str]] = ("budget=1x",)
    families: ClassVar[Sequence[str]] = ("bert", "roberta", "electra", "distilbert")

    def prepare(self, method: TokenPruningMethod) -> None:
        """Brings a method that is not trained yet into a state that prunes, in place; override it where this fails.

        By default the pruner's parameters are moved by random numbers, further and further, until a share of the
        tokens goes at more than one layer. Where none of this prunes, the checks use the method after a short fit.
        """
        _disturb(method)

    # -- the decision ----------------------------------------------------------------------------------

    def test_protected_tokens_stay(self) -> None:
        """[CLS], and the tokens that a caller marks, are kept at every layer."""
        method = self._pruning()
        batch = _sentences(LENGTHS, method.model)
        marked = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
        for row, length in enumerate(LENGTHS):
            marked[row, [length // 2, length - 1]] = True
        pruner = _pruner(method)
        stays = marked.clone()
        stays[:, 0] |= pruner.protect_first
        for execution in DECIDING:
            trace = _see(method.model, batch, execution, protected=marked).trace
            for entry in trace.layers:
                keep = _in_place(entry.keep, entry.position, entry.keep > 0, stays.shape[1])
                for row, token in (stays & (keep < 1)).nonzero().tolist():
                    _fail(
                        f"layer {entry.layer}, row {row}, execution {execution!r}: token {token} is protected, but "
                        f"its keep is {float(keep[row, token]):g}",
                        f"{type(pruner).__name__}.decide does not look at state.protected. Leave decide() to "
                        "TokenPruner, which keeps protected tokens whatever a policy says.",
                    )

    def test_a_gone_token_stays_gone(self) -> None:
        """No later layer brings back a token that left, and padding is never kept."""
        method = self._pruning()
        pruner = _pruner(method)
        for execution in DECIDING:
            before = [set(range(length)) for length in LENGTHS]
            for layer, rows in enumerate(_see(method.model, _sentences(LENGTHS, method.model), execution).kept):
                for row, kept in enumerate(rows):
                    padding = [token for token in kept if token >= LENGTHS[row]]
                    back = sorted(set(kept) - before[row])
                    if back:
                        what = f"padding {padding} is kept" if padding else f"tokens {back} were gone and are back"
                        _fail(
                            f"layer {layer}, row {row}, execution {execution!r}: {what}",
                            f"{type(pruner).__name__}.decide does not multiply keep by state.alive. Leave decide() to "
                            "TokenPruner, which lets nobody back in.",
                        )
                    before[row] = set(kept)

    def test_padding_changes_nothing(self) -> None:
        """A wider batch gives the same tokens and the same logits."""
        model = self._pruning().model
        for execution in HARD:
            narrow = _see(model, _sentences(LENGTHS, model), execution)
            wide = _see(model, _sentences(LENGTHS, model, width=max(LENGTHS) + 9), execution)
            _same(
                narrow,
                wide,
                f"{execution!r}",
                f"{execution!r} with 9 more columns of padding",
                "the padded width entered a decision: scores.shape[1], or a mean or a softmax over all columns. Use "
                "state.length (tokens before pruning), state.count (tokens still here) and state.alive (which).",
            )

    def test_batch_mates_change_nothing(self) -> None:
        """A sentence keeps the same tokens and logits, whoever shares its batch."""
        model = self._pruning().model
        batch = _sentences(LENGTHS, model)
        for execution in HARD:
            together = _see(model, batch, execution)
            for row in range(len(LENGTHS)):
                alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
                _same(
                    together.row(row),
                    _see(model, alone, execution),
                    f"{execution!r} in a batch of {len(LENGTHS)}",
                    f"{execution!r} alone",
                    "a statistic over the batch entered a decision: scores.max(), .mean() or .quantile() without a "
                    "dimension, or one count for all rows. Reduce over dim=-1, and only over state.alive.",
                    first_row=row,
                )

    def test_evaluation_is_deterministic(self) -> None:
        """The same batch twice gives the same numbers, whatever was drawn from random generators in between."""
        model = self._pruning().model
        batch = _sentences(LENGTHS, model)
        for execution in HARD:
            _same(
                _see(model, batch, execution, seed=1),
                _see(model, batch, execution, seed=2),
                f"{execution!r} the first time",
                "the second time",
                "forward() of the scorer or policy draws random numbers, or changes something when it is called. Draw "
                "in policy.soft() alone; what must be random in evaluation is a function of a seed and state.position.",
                tolerance=0.0,
            )

    def test_mask_drop_and_pack_are_one_function(self) -> None:
        """Hiding tokens, removing them, and removing padding too: same tokens kept, same logits, in every family."""
        method = self._pruning()
        cfg = _composed(self._given())
        labels = TaskSpec.from_config(cfg["task"]).labels
        for family in self.families:
            model = method.model
            if family != model.config.model_type:
                other = _random_classifier(cfg["backbone"] | {"family": family}, labels)
                model = install(other, copy.deepcopy(_pruner(method)))
            batch = _sentences(LENGTHS, model)
            mask = _see(model, batch, "mask")
            for execution in ("drop", "pack"):
                _same(
                    mask,
                    _see(model, batch, execution),
                    f"'mask' on {family}",
                    f"{execution!r} on {family}",
                    "the decision counts tokens that are gone: attention summed over dead queries, a rank, a mean or "
                    "a width over all columns. Read signals.received, or weigh by state.alive; for how many, use "
                    "state.length or state.count.",
                )

    def test_the_packed_engine_is_the_mask_path(self) -> None:
        """prunekit.load(folder, engine="packed") asks the method: same tokens kept, same logits, in float32."""
        method = self._pruning()
        batch = _sentences(LENGTHS, method.model)
        mask = _see(method.model, batch, "mask")
        for backends in ("auto", "torch"):
            engine = PackedEngine(method.model, linears=backends, attention=backends, cls_last=False)
            result = engine(batch)
            _same(
                mask,
                _Seen(result.logits, mask.hidden, result.trace, result.kept),
                "'mask'",
                f"the packed engine ({backends} backends)",
                "the decision reads something that only the traversal has: signals or state that `needs` does not "
                "name, or an attribute set from outside. Scorer and policy get all that they may read as arguments.",
            )

    # -- training --------------------------------------------------------------------------------------

    def test_with_nothing_to_prune_it_is_the_dense_model(self) -> None:
        """Trained for a budget of 1x it removes no token, and its logits are those of the dense model."""
        model = _fit(self._given(self.nothing_pruned)).method.model.eval()
        batch = _sentences(LENGTHS, model)
        dense = _see(model, batch, "dense")
        for execution in HARD:
            _same(
                dense,
                _see(model, batch, execution),
                "'dense'",
                f"{execution!r} after training with {' '.join(self.nothing_pruned)}",
                "the policy always removes something: a rounding down, a strict comparison (> where >= is meant), a "
                "threshold above the smallest score, or the budget never reaches the policy.",
                tolerance=1e-5,
            )

    def test_gradients_reach_what_is_trained(self) -> None:
        """In a short fit every trainable parameter belongs to an optimiser group, and gets a gradient."""
        found = _fit(self._given())
        if left_out := sorted(found.trainable - found.held):
            _fail(
                f"{_listed(left_out)} requires a gradient, but no optimiser group has it: it stays as it was",
                "parameter_groups() does not return it. Every parameter of scorer and policy needs a group there; "
                "what is not to be trained needs requires_grad_(False).",
            )
        if idle := sorted(found.held - found.reached):
            _fail(
                f"{_listed(idle)} is in an optimiser group, but in {found.steps} steps it got no gradient",
                "something on the way is not differentiable: a comparison or a rounding in policy.soft() (use a "
                "sigmoid, or a straight-through estimate), a detach(), a loss without the term that depends on it, or "
                "terms() that run 'mask' where 'soft' is meant.",
            )

    def test_interrupted_and_resumed_it_ends_with_the_same_weights(self) -> None:
        """Killed twice and gone on, a fit ends with bit for bit the same weights, pruner and optimiser state."""
        whole = _fit(self._given())
        resumed = _fit(self._given(), INTERRUPTIONS)
        cause = (
            "something that training changes is a plain attribute (a counter, a running mean, an own torch.Generator), "
            "so a new process starts it again. Register it as a buffer, compute it from self.global_step, or keep it "
            "with on_save_checkpoint and on_load_checkpoint."
        )
        for name, tensor in whole.weights.items():
            other = resumed.weights.get(name)
            if other is None or not torch.equal(tensor, other):
                by = "is missing" if other is None else f"differs by up to {float((tensor - other).abs().max()):.2g}"
                steps = " and ".join(map(str, INTERRUPTIONS))
                _fail(f"after interruptions at the steps {steps} of {whole.steps}, {name} {by}", cause)
        if not _equal(whole.optimizer, resumed.optimizer):
            _fail("the weights are the same, but the optimiser's state or learning rates are not", cause)

    # -- in and out ------------------------------------------------------------------------------------

    def test_saved_and_loaded_it_is_the_same_model(self, tmp_path: Path) -> None:
        """prunekit.load of a saved folder keeps the same tokens and gives the same logits."""
        model = self._pruning().model
        cause = (
            "arguments() of the scorer or policy does not return all that its __init__ takes, or what was learned is "
            "a plain attribute. Numbers and settings belong in arguments(), tensors into parameters or buffers."
        )
        pretrained.save(model, None, tmp_path)
        try:
            loaded = pretrained.load(tmp_path)
        except (TypeError, ValueError, RuntimeError) as error:
            _fail(f"the saved folder cannot be loaded ({type(error).__name__}: {error})", cause)
        batch = _sentences(LENGTHS, model)
        for execution in HARD:
            before, after = _see(model, batch, execution), _see(loaded, batch, execution)
            _same(before, after, f"{execution!r} before", "after saving and loading", cause, tolerance=1e-6)

    def test_an_unknown_key_is_refused(self) -> None:
        """A misspelt key is no silent no-op: neither on the command line nor in the method's own class."""
        with pytest.raises(ConfigError, match=r"there is no key method\.no_such_key"):
            compose([*self._given(), "method.no_such_key=1"])
        cfg = _composed(self._given())
        kind, built = method_class(cfg), self._built().method
        options = method_options(cfg) | {"no_such_key": 1}
        try:
            kind.build_pruner(built.setting.shape, **options)
            kind(copy.deepcopy(built.model), built.setting, **options)
        except TypeError:
            return
        _fail(
            f"{kind.__name__} takes no_such_key=1, in build_pruner(shape, ...) and when it is made: a key of its YAML "
            "file that nobody reads would go unnoticed",
            "**options swallows what nobody reads. Name the keys as keyword arguments, or make a dataclass of them: "
            "Options(**options).",
        )

    # -- the method under test -------------------------------------------------------------------------

    def _given(self, more: Sequence[str] = ()) -> tuple[str, ...]:
        """All overrides of the small run; a later one replaces an earlier one of the same key."""
        if not self.overrides:
            _fail(f"{type(self).__name__} names no method", 'the class needs a line as overrides = ["method=entropy"].')
        chosen = {override.partition("=")[0]: override for override in (*SMALL, *self.overrides, *more)}
        return tuple(chosen.values())

    def _built(self) -> _Built:
        return _build(self._given())

    def _pruning(self) -> TokenPruningMethod:
        """The method in evaluation mode, in a state that prunes; a copy, so that a check may do what it likes."""
        kind = type(self)
        if kind not in _PRUNING:
            method = copy.deepcopy(self._built().method).eval()
            self.prepare(method)
            if _pruned(method)[0] == 0:
                method = _fit(self._given()).method.eval()
            _PRUNING[kind] = method
        if _pruned(_PRUNING[kind])[0] == 0:
            _fail(
                f"{' '.join(self.overrides)} prunes nothing: neither with random parameters nor after a short fit "
                "does any token go, so the checks would say nothing",
                "the policy always keeps, or decides at no layer. If it needs another state, override "
                "prepare(method) in the test; if it needs other options, add them to overrides.",
            )
        return copy.deepcopy(_PRUNING[kind])


# -- running -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Built:
    """A method before training, and its data."""

    method: TokenPruningMethod
    data: TokenPruningDataModule


@dataclass(frozen=True)
class _Fitted:
    """A method after a short fit: the last checkpoint, and the names of the parameters that were ever trainable,
    held by the optimiser, or reached by a gradient.
    """

    method: TokenPruningMethod
    weights: dict[str, Tensor]
    optimizer: Any
    trainable: frozenset[str]
    held: frozenset[str]
    reached: frozenset[str]
    steps: int


class _InterruptedError(Exception):
    """Stands for a kill."""


_PRUNING: dict[type, TokenPruningMethod] = {}


@cache
def _workplace() -> Path:
    """A folder for the data, the models and the runs of this process."""
    folder = tempfile.TemporaryDirectory(prefix="prunekit-conformance-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def _composed(given: tuple[str, ...]) -> dict[str, Any]:
    places = [f"data.cache_dir={_workplace() / 'cache'}", f"runs_dir={_workplace() / 'runs'}"]
    cfg, choices = compose([*given, *places])
    validate(cfg, choices)
    return cfg


def _random_classifier(backbone: Mapping[str, Any], labels: Sequence[str] | None) -> PreTrainedModel:
    """A random model whose attention is peaky enough for tokens to differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = pretrained.load_classifier(find_backbone(backbone), labels=labels)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@cache
def _teacher(backbone: tuple[tuple[str, Any], ...], labels: tuple[str, ...] | None) -> Path:
    """The folder of a random classifier with its tokenizer, which stands for a fine-tuned model."""
    folder = Path(tempfile.mkdtemp(dir=_workplace()))
    _random_classifier(dict(backbone), labels).save_pretrained(folder)
    AutoTokenizer.from_pretrained(find_backbone(dict(backbone))).save_pretrained(folder)
    return folder


def _pipeline(given: tuple[str, ...], checkpoint_seconds: int = 3600) -> Pipeline:
    """The run of a configuration in a folder of its own, from a teacher that is ready."""
    cfg = copy.deepcopy(_composed(given))
    spec = TaskSpec.from_config(cfg["task"])
    cfg["runs_dir"] = tempfile.mkdtemp(dir=_workplace())
    cfg["teacher"]["path"] = str(_teacher(tuple(cfg["backbone"].items()), spec.labels))
    cfg["trainer"]["checkpoint_seconds"] = checkpoint_seconds
    return Pipeline(cfg, RunFolder.of(cfg), spec, find_task(spec), find_backbone(cfg["backbone"]))


@cache
def _build(given: tuple[str, ...]) -> _Built:
    method, data, _ = _pipeline(given).build()
    return _Built(method, data)


@cache
def _fit(given: tuple[str, ...], interruptions: tuple[int, ...] = ()) -> _Fitted:
    """A short fit, interrupted before these steps and resumed each time by a method that is built anew."""
    # 0 = a checkpoint after each step
    pipeline = _pipeline(given, checkpoint_seconds=0 if interruptions else 3600)
    trainable, held, reached = set[str](), set[str](), set[str]()
    for stop in (*interruptions, None):
        method, data, _ = pipeline.build()
        # instance attributes, which Lightning calls in place of the methods
        train = method.training_step

        def training_step(
            batch: Batch, batch_idx: int, stop: Any = stop, train: Any = train, m: Any = method
        ) -> dict[str, Any]:
            if m.global_step == stop:
                raise _InterruptedError
            return train(batch, batch_idx)

        def look(optimizer: Any, method: TokenPruningMethod = method) -> None:
            inside = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            for name, parameter in method.named_parameters():
                if parameter.requires_grad:
                    trainable.add(name)
                if id(parameter) in inside:
                    held.add(name)
                if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0):
                    reached.add(name)

        method.__dict__ |= {"training_step": training_step, "on_before_optimizer_step": look}
        try:
            pipeline.fit(method, data, [])
        except _InterruptedError:
            continue
    for name in ("training_step", "on_before_optimizer_step"):
        del method.__dict__[name]
    method.trainer = None  # so that the method can be copied
    stored = torch.load(pipeline.folder.checkpoints / LAST, weights_only=True)
    return _Fitted(
        method.cpu(),
        stored["state_dict"],
        stored["optimizer_states"],
        frozenset(trainable),
        frozenset(held),
        frozenset(reached),
        stored["global_step"],
    )


def _pruner(method: TokenPruningMethod) -> TokenPruner:
    if method.pruner is None:
        _fail(f"{type(method).__name__} has no pruner", "build_pruner(shape, ...) returns None, as the dense method's.")
    return method.pruner


def _disturb(method: TokenPruningMethod) -> None:
    """Moves the pruner's parameters until it prunes; among the states that do, the first balanced one."""
    parameters = list(_pruner(method).parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    best, best_distance = start, float("inf")
    for draw in range(len(SCALES) * TRIES if parameters else 0):
        generator = torch.Generator().manual_seed(draw)
        drawn = [s + SCALES[draw // TRIES] * torch.randn(s.shape, generator=generator) for s in start]
        _assign(parameters, drawn)
        share, layers = _pruned(method)
        if 0.15 < share < 0.85 and layers >= min(2, len(_pruner(method).layers)):
            return
        if share > 0 and abs(share - 0.5) < best_distance:
            best, best_distance = drawn, abs(share - 0.5)
    _assign(parameters, best)


@torch.no_grad()
def _assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _pruned(method: TokenPruningMethod) -> tuple[float, int]:
    """Share of the suite's tokens that is gone behind the last layer, and at how many layers some went."""
    trace = _see(method.model, _sentences(LENGTHS, method.model), "mask").trace
    layers = (trace.tokens_out < trace.tokens_in).any(-1).sum()
    return 1 - float(trace.tokens_out[-1].sum()) / sum(LENGTHS), int(layers)


def _sentences(lengths: Sequence[int], model: PreTrainedModel, width: int | None = None) -> dict[str, Tensor]:
    """Random token ids of these lengths, padded to the longest or to `width`."""
    generator = torch.Generator().manual_seed(0)
    longest = width or max(lengths)
    ids = torch.full((len(lengths), longest), model.config.pad_token_id or 0)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, model.config.vocab_size, (length,), generator=generator)
    real = torch.arange(longest)[None, :] < torch.tensor(list(lengths))[:, None]
    return {"input_ids": ids, "attention_mask": real.long()}


# -- seeing and comparing ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """What one forward pass gave: logits, hidden states, the trace, and per layer and row the tokens that went on."""

    logits: Float[Tensor, "batch classes"]
    hidden: Float[Tensor, "batch tokens hidden"]
    trace: Trace
    kept: list[list[list[int]]]

    def row(self, row: int) -> _Seen:
        """One sentence of the batch."""
        one = slice(row, row + 1)
        return _Seen(self.logits[one], self.hidden[one], self.trace, [rows[one] for rows in self.kept])


def _see(
    model: PreTrainedModel,
    batch: Batch,
    execution: Execution,
    *,
    seed: int = 0,
    protected: Bool[Tensor, "batch tokens"] | None = None,
) -> _Seen:
    assert execution in get_args(Execution)
    trace = Trace()
    seen: list[Tensor] = []
    encoder = encoder_of(model)
    hook = encoder.register_forward_hook(lambda module, given, output: seen.append(output.last_hidden_state))
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            logits = model(**batch, execution=execution, trace=trace, protected=protected).logits
    finally:
        hook.remove()
    kept = [
        [sorted(positions[keep > 0].tolist()) for positions, keep in zip(entry.position, entry.keep, strict=True)]
        for entry in trace.layers
    ]
    return _Seen(logits, seen[0], trace, kept)


def _in_place(
    values: Float[Tensor, "batch tokens"],
    position: Int[Tensor, "batch tokens"],
    here: Bool[Tensor, "batch tokens"],
    width: int,
) -> Float[Tensor, "batch width"]:
    """Values where their tokens were before any pruning; 0 for those that are not here."""
    row = torch.arange(len(values))[:, None].expand_as(position)
    return values.new_zeros((len(values), width)).index_put((row[here], position[here]), values[here])


def _same(
    first: _Seen,
    second: _Seen,
    one: str,
    other: str,
    cause: str,
    *,
    tolerance: float = TOLERANCE,
    first_row: int = 0,
) -> None:
    """Fails with the first layer and row at which two passes differ."""
    for layer, (rows, others) in enumerate(zip(first.kept, second.kept, strict=True)):
        for row, (kept, kept_other) in enumerate(zip(rows, others, strict=True), first_row):
            if kept != kept_other:
                _fail(
                    f"layer {layer}, row {row}: {one} keeps {_tokens(kept)}, {other} keeps {_tokens(kept_other)}", cause
                )
    width = min(first.hidden.shape[1], second.hidden.shape[1])
    pairs = {
        "logits": (first.logits, second.logits),
        "hidden states": (first.hidden[:, :width], second.hidden[:, :width]),
    }
    for what, (values, values_other) in pairs.items():
        gap = (values - values_other).abs().flatten(1).amax(-1)
        worst = int(gap.argmax())
        if not float(gap[worst]) <= tolerance:
            _fail(
                f"row {first_row + worst}: the {what} of {one} and {other} differ by {float(gap[worst]):.2g}, at most "
                f"{tolerance:g} is allowed; the same tokens are kept",
                cause,
            )


def _tokens(kept: Sequence[int]) -> str:
    shown = ", ".join(map(str, kept[:12]))
    return f"{len(kept)} tokens [{shown}{', ...' * (len(kept) > 12)}]"


def _listed(names: Sequence[str]) -> str:
    return f"{names[0]} (and {len(names) - 1} more)" if len(names) > 1 else names[0]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _fail(what: str, cause: str) -> NoReturn:
    pytest.fail(f"{what}.\nUsual cause: {cause}", pytrace=False)
