"""The conformance suite: the promises of every token-pruning method, prunekit's own and those of other packages.

    from prunekit.conformance import MethodConformance

    class TestEntropy(MethodConformance):
        overrides = ["method=entropy"]

Each check builds the method as a run does, on a tiny random model and generated sentences. A failure names what
differed, at which layer and row, and what usually causes it. For tests only: nothing in prunekit imports this package,
and no other package imports pytest.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.conformance.comparing import _fail, _in_place, _listed, _same, _see, _Seen, _sentences
from prunekit.conformance.running import (
    INTERRUPTIONS,
    SMALL,
    _build,
    _Built,
    _composed,
    _equal,
    _fit,
    _random_classifier,
)
from prunekit.cost import dense_macs, encoder_macs
from prunekit.data.spec import TaskSpec
from prunekit.methods.base import TokenPruningMethod
from prunekit.models import pretrained
from prunekit.pipelines.tokens.preparation import method_class
from prunekit.runs.kinds import method_options
from prunekit.runtime.engine import PackedEngine
from prunekit.tokens.encoder import install
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.state import Execution

HARD: tuple[Execution, ...] = ("mask", "drop", "pack")
DECIDING: tuple[Execution, ...] = ("mask", "soft", "drop", "pack")
LENGTHS = (20, 13, 7, 1, 20, 3)  # tokens per row: equal ones, very short ones, and padding for most
# how far parameters are moved from their start until the method prunes; 0 = not at all
SCALES = (0.0, 0.3, 1.0, 3.0, 10.0)
TRIES = 3  # random draws per scale


class MethodConformance:
    """The checks. Inherit it, name the method in `overrides`, and pytest collects them.

    A method that takes no budget names in `nothing_pruned` the values of its knob with which it prunes nothing.
    """

    overrides: ClassVar[Sequence[str]] = ()  # as on the command line: ["method=entropy", "method.share=0.5"]
    nothing_pruned: ClassVar[Sequence[str]] = ("budget=1x",)
    families: ClassVar[Sequence[str]] = ("bert", "roberta", "electra", "distilbert")

    def prepare(self, method: TokenPruningMethod) -> None:
        """Bring a method that is not trained yet into a state that prunes, in place; override it where this fails.

        By default the pruner's parameters are moved by random numbers, further and further, until a share of the
        tokens is dropped at more than one layer. If none of this prunes, the checks use the method after a short fit.
        """
        _disturb(method)

    # -- the decision ----------------------------------------------------------------------------------

    def test_protected_tokens_are_kept(self) -> None:
        """Check that [CLS], and the tokens that a caller marks, are kept at every layer."""
        method = self._deciding()
        batch = _sentences(LENGTHS, method.model)
        marked = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
        for row, length in enumerate(LENGTHS):
            marked[row, [length // 2, length - 1]] = True
        pruner = _pruner(method)
        protected = marked.clone()
        protected[:, 0] |= pruner.protect_first
        for execution in DECIDING:
            trace = _see(method.model, batch, execution, protected=marked).trace
            for entry in trace.layers:
                keep = _in_place(entry.keep, entry.position, entry.keep > 0, protected.shape[1])
                for row, token in (protected & (keep < 1)).nonzero().tolist():
                    _fail(
                        f"layer {entry.layer}, row {row}, execution {execution!r}: token {token} is protected, but "
                        f"its keep is {float(keep[row, token]):g}",
                        f"{type(pruner).__name__}.decide does not look at state.protected. Leave decide() to "
                        "TokenPruner, which keeps protected tokens whatever a policy decides.",
                    )

    def test_no_dropped_token_returns(self) -> None:
        """Check that no later layer keeps a token that was dropped, and that padding is never kept."""
        method = self._deciding()
        pruner = _pruner(method)
        for execution in DECIDING:
            before = [set(range(length)) for length in LENGTHS]
            for layer, rows in enumerate(_see(method.model, _sentences(LENGTHS, method.model), execution).kept):
                for row, kept in enumerate(rows):
                    padding = [token for token in kept if token >= LENGTHS[row]]
                    back = sorted(set(kept) - before[row])
                    if back:
                        what = f"padding {padding} is kept" if padding else f"tokens {back} were dropped and are back"
                        _fail(
                            f"layer {layer}, row {row}, execution {execution!r}: {what}",
                            f"{type(pruner).__name__}.decide does not multiply keep by state.alive. Leave decide() to "
                            "TokenPruner, which keeps no dropped token.",
                        )
                    before[row] = set(kept)

    def test_padding_changes_nothing(self) -> None:
        """Check that a wider batch gives the same tokens and the same logits."""
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
                "state.length (tokens before pruning), state.count (tokens still kept) and state.alive (which).",
            )

    def test_batch_mates_change_nothing(self) -> None:
        """Check that a sentence keeps the same tokens and logits, whatever shares its batch."""
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
        """Check that a batch gives the same numbers twice, whatever the state of the random generators."""
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
        """Check that hiding tokens, dropping them, and dropping padding too give the same logits, in every family."""
        method = self._pruning()
        cfg = _composed(self._given())
        labels = TaskSpec.from_config(cfg["task"]).labels
        for family in self.families:
            model = method.model
            if family != model.config.model_type:
                other = _random_classifier(cfg["backbone"] | {"family": family}, labels)
                model = method.options.equip(other, method.context.shape)
                if method.pruner is not None:
                    install(model, copy.deepcopy(method.pruner))
            batch = _sentences(LENGTHS, model)
            mask = _see(model, batch, "mask")
            for execution in ("drop", "pack"):
                _same(
                    mask,
                    _see(model, batch, execution),
                    f"'mask' on {family}",
                    f"{execution!r} on {family}",
                    "the decision counts dropped tokens: attention summed over dropped queries, a rank, a mean or "
                    "a width over all columns. Read signals.received, or weigh by state.alive; for how many, use "
                    "state.length or state.count.",
                )

    def test_the_packed_engine_is_the_mask_path(self) -> None:
        """Check that the packed engine keeps the same tokens and gives the same logits, in float32."""
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
                "the decision reads something that only the encoder has: signals or state that `needs` does not "
                "name, or an attribute set from outside. Scorer and policy get all that they may read as arguments.",
            )

    # -- training --------------------------------------------------------------------------------------

    def test_with_nothing_to_prune_it_is_the_dense_model(self) -> None:
        """Check that, trained for a budget of 1x, it drops no token and gives the logits of the dense model."""
        model = _fit(self._given(self.nothing_pruned)).method.model.eval()
        batch = _sentences(LENGTHS, model)
        dense = _see(model, batch, "dense")
        for execution in HARD:
            _same(
                dense,
                _see(model, batch, execution),
                "'dense'",
                f"{execution!r} after training with {' '.join(self.nothing_pruned)}",
                "the policy always drops something: a rounding down, a strict comparison (> where >= is meant), a "
                "threshold above the smallest score, or the budget never reaches the policy.",
                tolerance=1e-5,
            )

    def test_gradients_reach_what_is_trained(self) -> None:
        """Check that in a short fit every trainable parameter is in an optimiser group, and gets a gradient."""
        fitted = _fit(self._given())
        if left_out := sorted(fitted.trainable - fitted.held):
            _fail(
                f"{_listed(left_out)} requires a gradient, but no optimiser group has it: it does not change",
                "parameter_groups() does not return it. Every parameter of scorer and policy needs a group there; "
                "what is not to be trained needs requires_grad_(False).",
            )
        if idle := sorted(fitted.held - fitted.reached):
            _fail(
                f"{_listed(idle)} is in an optimiser group, but in {fitted.steps} steps it got no gradient",
                "something in between is not differentiable: a comparison or a rounding in policy.soft() (use a "
                "sigmoid, or a straight-through estimate), a detach(), a loss without the term that depends on it, or "
                "terms() that run 'mask' where 'soft' is meant.",
            )

    def test_interrupted_and_resumed_it_ends_with_the_same_weights(self) -> None:
        """Check that a fit killed and resumed twice ends with bit for bit the same weights and optimiser state."""
        whole = _fit(self._given())
        resumed = _fit(self._given(), INTERRUPTIONS)
        cause = (
            "something that training changes is a plain attribute (a counter, a running mean, a torch.Generator), "
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
        """Check that the model loaded from a saved folder keeps the same tokens and gives the same logits."""
        model = self._pruning().model
        cause = (
            "arguments() of the scorer or policy does not return all that its __init__ takes, or what was learned is "
            "a plain attribute. Numbers and settings belong in arguments(), tensors into parameters or buffers."
        )
        pretrained.save(model, None, tmp_path)
        try:
            loaded = pretrained.load_hf(tmp_path)
        except (TypeError, ValueError, RuntimeError) as error:
            _fail(f"the saved folder cannot be loaded ({type(error).__name__}: {error})", cause)
        batch = _sentences(LENGTHS, model)
        for execution in HARD:
            before, after = _see(model, batch, execution), _see(loaded, batch, execution)
            _same(before, after, f"{execution!r} before", "after saving and loading", cause, tolerance=1e-6)

    def test_an_unknown_key_is_refused(self) -> None:
        """Check that a misspelt key is refused, both on the command line and by the method's options."""
        with pytest.raises(ConfigError, match=r"there is no key method\.no_such_key"):
            compose([*self._given(), "method.no_such_key=1"])
        cfg = _composed(self._given())
        kind = method_class(cfg)
        try:
            kind.Options.from_config(method_options(cfg) | {"no_such_key": 1})
        except TypeError:
            return
        _fail(
            f"{kind.__name__}.Options.from_config takes no_such_key=1: a key of its YAML file that no field declares "
            "would go unnoticed",
            "from_config() drops the keys that it does not read. Leave it to MethodOptions, and declare each key as a "
            "field of the dataclass.",
        )

    # -- the method under test -------------------------------------------------------------------------

    def _given(self, more: Sequence[str] = ()) -> tuple[str, ...]:
        """Return all overrides of the small run; a later one replaces an earlier one of the same key."""
        if not self.overrides:
            _fail(f"{type(self).__name__} names no method", 'the class needs a line as overrides = ["method=entropy"].')
        chosen = {override.partition("=")[0]: override for override in (*SMALL, *self.overrides, *more)}
        return tuple(chosen.values())

    def _built(self) -> _Built:
        return _build(self._given())

    def _pruning(self) -> TokenPruningMethod:
        """Return a copy of the method in evaluation mode, in a state that prunes; a check may change it."""
        kind = type(self)
        if kind not in _PRUNING:
            method = copy.deepcopy(self._built().method).eval()
            self.prepare(method)
            if not _saves(method) and method.pruner is not None:
                method = _fit(self._given()).method.eval()
            _PRUNING[kind] = method
        if not _saves(_PRUNING[kind]):
            _fail(
                f"{' '.join(self.overrides)} prunes nothing: neither with random parameters nor after a short fit "
                "does it compute less than the dense model, so the checks would prove nothing",
                "the policy always keeps, or decides at no layer; or there is no pruner, because build_pruner(shape) "
                "of its Options returns None, as that of the dense method. If it needs another state, override "
                "prepare(method) in the test; if it needs other options, add them to overrides.",
            )
        return copy.deepcopy(_PRUNING[kind])

    def _deciding(self) -> TokenPruningMethod:
        """Return the same, of a method that decides on tokens; the checks of decisions are for no other."""
        method = self._pruning()
        if method.pruner is None:
            pytest.skip("it changes the encoder, or what the encoder reads, and decides on no token inside it")
        return method


_PRUNING: dict[type, TokenPruningMethod] = {}


def _pruner(method: TokenPruningMethod) -> TokenPruner:
    assert method.pruner is not None
    return method.pruner


def _disturb(method: TokenPruningMethod) -> None:
    """Move the pruner's parameters until it prunes; of the states that do, choose the first balanced one."""
    parameters = [] if method.pruner is None else list(method.pruner.parameters())
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


def _saves(method: TokenPruningMethod) -> bool:
    """Return whether the suite's sentences cost less than in the dense model."""
    lengths, trace = torch.tensor(LENGTHS), _see(method.model, _sentences(LENGTHS, method.model), "mask").trace
    spent = encoder_macs(method.context.shape, trace.tokens_in, trace.tokens_out).sum()
    return bool(spent < dense_macs(method.context.shape, lengths).sum())


def _pruned(method: TokenPruningMethod) -> tuple[float, int]:
    """Return the share of the suite's tokens dropped after the last layer, and how many layers drop some."""
    trace = _see(method.model, _sentences(LENGTHS, method.model), "mask").trace
    layers = (trace.tokens_out < trace.tokens_in).any(-1).sum()
    return 1 - float(trace.tokens_out[-1].sum()) / sum(LENGTHS), int(layers)
