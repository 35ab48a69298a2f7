"""Sentence embedders: an encoder of transformers, and the modules of sentence-transformers that make its vector.

The folder stays theirs: `SentenceTransformer(folder)` loads what is saved here, as the dense model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from prunekit.config.errors import ConfigError, first_line, listed, shown
from prunekit.files import atomic_write_text
from prunekit.models.given import EMBEDDING_SIZE
from prunekit.models.sentence_folder import (
    EMBEDDER,
    MODULES,
    OLD_POOLINGS,
    SETTINGS,
    SentenceFolder,
    SentenceModule,
    activation_name,
    read_sentence_folder,
    read_weights,
)
from prunekit.tokens.encoder import PrunedEncoder
from prunekit.tokens.families.registry import family_of
from prunekit.tokens.state import Trace

Pooled = Literal[
    "kept", "all"
]  # the tokens that are pooled: those that the last layer keeps, or all, as they were last
POOLED = "pooled_tokens"  # of ours in config.json
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens")
VECTOR = "sentence_embedding"  # as sentence-transformers calls it

Weights = Float[Tensor, "batch tokens"]  # of each token: 0 = not pooled


class Pool(nn.Module):
    """One vector per text from those of its tokens: several modes are concatenated."""

    def __init__(self, modes: Sequence[str]) -> None:
        super().__init__()
        self.modes = tuple(modes)

    def forward(
        self, hidden: Float[Tensor, "batch tokens hidden"], weights: Weights | None = None
    ) -> Float[Tensor, "batch size"]:
        """Return the vectors; tokens of weight 0 do not count, and without weights all of them do."""
        share = torch.ones_like(hidden[..., 0]) if weights is None else weights.to(hidden.dtype)
        return torch.cat([self._pooled(mode, hidden, share[..., None]) for mode in self.modes], dim=-1)

    def _pooled(self, mode: str, hidden: Tensor, share: Float[Tensor, "batch tokens one"]) -> Tensor:
        if mode == "cls":
            return hidden[:, 0]
        if mode == "max":
            return hidden.masked_fill(share <= 0, torch.finfo(hidden.dtype).min).amax(1)
        count = share.sum(1).clamp(min=1e-9)
        return (hidden * share).sum(1) / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


class Dense(nn.Module):
    """A linear layer with an activation, and perhaps its input added, through a projection where the sizes differ."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, activation: str, residual: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.activation = getattr(nn, activation)()
        self.adds_input = residual
        if residual and inputs != outputs:
            self.residual = nn.Linear(inputs, outputs, bias=False)

    def forward(self, vectors: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """Return the new vectors."""
        found = self.activation(self.linear(vectors))
        if not self.adds_input:
            return found
        return found + (self.residual(vectors) if hasattr(self, "residual") else vectors)


class Unit(nn.Module):
    """Vectors divided by their length."""

    def forward(self, vectors: Float[Tensor, "batch size"]) -> Float[Tensor, "batch size"]:
        """Return vectors of length 1."""
        return F.normalize(vectors, dim=-1)


class Norm(nn.Module):
    """Vectors normed by their mean and spread, with weights under the names that its weights have in a folder."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.ParameterDict({"weight": torch.ones(size), "bias": torch.zeros(size)})

    def forward(self, vectors: Float[Tensor, "batch size"]) -> Float[Tensor, "batch size"]:
        """Return the normed vectors."""
        return F.layer_norm(vectors, vectors.shape[-1:], self.norm["weight"], self.norm["bias"])


class VectorHead(nn.Module):
    """The modules after the encoder: `modules` are their kinds and settings, of which the first is a Pooling.

    Raises:
        ConfigError: they are others, or in another order, than is computed here; the message names the module.
    """

    def __init__(self, modules: Sequence[tuple[str, Mapping[str, Any]]], hidden: int, place: str = "the model") -> None:
        super().__init__()
        kinds = [kind for kind, _ in modules]
        if kinds[:1] != ["Pooling"] or kinds.count("Pooling") > 1:
            raise ConfigError(
                f"{place} has the modules {listed(kinds) or 'none'} after its Transformer.\n"
                "Allowed: one Pooling, and Dense, LayerNorm, Dropout or Normalize after it.\nGive another model."
            )
        self.settings = [(kind, dict(given)) for kind, given in modules]
        self.steps, size = nn.ModuleList(), hidden
        for kind, given in self.settings:
            try:
                step, size = _step(kind, given, size, place)
            except (KeyError, TypeError, ValueError) as error:
                raise _misfit(place, kind, first_line(error)) from error
            self.steps.append(step)
        self.size = size

    @property
    def modes(self) -> tuple[str, ...]:
        """How tokens are pooled."""
        return tuple(self.settings[0][1]["pooling_mode"])

    def forward(
        self, hidden: Float[Tensor, "batch tokens hidden"], weights: Weights | None = None
    ) -> Float[Tensor, "batch size"]:
        """Return the vectors of texts, from the last states of their tokens."""
        pool, *others = self.steps
        vectors = pool(hidden, weights)
        for step in others:
            vectors = step(vectors)
        return vectors


def _step(kind: str, given: Mapping[str, Any], size: int, place: str) -> tuple[nn.Module, int]:
    """Return a module of a head that is given vectors of this size, and the size of those that it returns."""
    if kind == "Pooling":
        modes = tuple(given["pooling_mode"])
        if others := [mode for mode in modes if mode not in POOLINGS]:
            raise ConfigError(
                f"{place} pools its tokens by {listed(others)}, which is not computed here.\n"
                f"Allowed: {', '.join(POOLINGS)}.\nGive another model."
            )
        if not given.get("include_prompt", True):
            raise ConfigError(
                f"{place} leaves the prompt out of its pooling (include_prompt=false), which is not computed here.\n"
                "Allowed: models whose prompt, if there is one, is pooled like the text.\nGive another model."
            )
        return Pool(modes), size * len(modes)
    if {given.get(name, VECTOR) for name in ("module_input_name", "module_output_name")} - {VECTOR, None}:
        raise ConfigError(
            f"{place} has a {kind} for {shown(given.get('module_input_name'))}, which is not computed here.\n"
            f"Allowed: modules of the text's own vector, {VECTOR}.\nGive another model."
        )
    if kind == "Dense":
        inputs, outputs = int(given["in_features"]), int(given["out_features"])
        if inputs != size:
            raise ValueError(f"it takes {inputs} numbers and is given {size}")
        name = activation_name(given["activation_function"], place)
        dense = Dense(
            inputs, outputs, bias=bool(given["bias"]), activation=name, residual=bool(given.get("use_residual"))
        )
        return dense, outputs
    if kind == "LayerNorm":
        return Norm(size), size
    return (Unit() if kind == "Normalize" else nn.Identity()), size  # dropout does nothing in evaluation


def _misfit(place: str, kind: str, why: str) -> ConfigError:
    return ConfigError(
        f"{place} has a {kind} that does not fit it ({why}).\nAllowed: modules as sentence-transformers saves them.\n"
        "Save the model again, or copy the whole folder."
    )


class SentenceEmbedder(PreTrainedModel):
    """An encoder with the modules of its vector. Called like any model of transformers, `logits` are the vectors.

    `pooled_tokens` of its configuration says which tokens are pooled where some are dropped.
    """

    config_class = PretrainedConfig
    base_model_prefix = "body"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, body: PreTrainedModel, head: VectorHead, about: Mapping[str, Any] | None = None) -> None:
        super().__init__(body.config)
        self.body = body
        self.head = head
        self.about = dict(about or {})  # the settings of the whole, as prompts
        if getattr(self.config, POOLED, None) not in get_args(Pooled):
            self.pool("kept")
        setattr(self.config, EMBEDDING_SIZE, head.size)

    @classmethod
    def from_pretrained(cls, source: Any, *, output_loading_info: bool = False, **settings: Any) -> Any:
        """Load the folder of a SentenceTransformer, as the class method of transformers does.

        Raises:
            ConfigError: it has modules, or settings, that are not computed here.
        """
        folder = read_sentence_folder(source)
        if folder is None or folder.model_type != EMBEDDER:
            raise ConfigError(
                f"{source} is no folder of a SentenceTransformer: it has no {MODULES} of one.\n"
                "Allowed: a folder that SentenceTransformer.save wrote.\nGive another folder."
            )
        if folder.default_prompt:
            raise ConfigError(
                f"{source} puts {shown(folder.default_prompt)} before every text (default_prompt_name), unlike here.\n"
                "Allowed: texts that have their prompts already.\n"
                f'Set "default_prompt_name": null in {Path(source) / SETTINGS}, and write the prompt into the texts.'
            )
        others = {name: value for name, value in settings.items() if name != "trust_remote_code"}
        body, report = AutoModel.from_pretrained(source, trust_remote_code=False, output_loading_info=True, **others)
        lacking = [name for name in report["missing_keys"] if name.startswith("pooler.")]
        if lacking:
            body.pooler = None  # the vector does not depend on it
            report["missing_keys"] = [name for name in report["missing_keys"] if name not in lacking]
        head = load_head(folder, [(part.kind, part.settings) for part in folder.head], body.config)
        model = cls(body, head, folder.settings).eval()
        return (model, report) if output_loading_info else model

    @property
    def stored_as(self) -> PreTrainedModel:
        """The model whose tensors are in model.safetensors under their own names."""
        return self.body

    def pool(self, tokens: Pooled) -> None:
        """Choose the tokens that make the vector."""
        setattr(self.config, POOLED, tokens)

    @property
    def pools_kept(self) -> bool:
        """Whether dropped tokens have no part in the vector."""
        return getattr(self.config, POOLED) == "kept"

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        *,
        trace: Trace | None = None,
        **more: Any,
    ) -> SequenceClassifierOutput:
        """Return the vectors of a padded batch as `logits` [batch, size]; arguments are those of the encoder."""
        seen = trace
        if seen is None and self.pools_kept and self._is_pruned:
            seen = Trace()
        given = more if seen is None else {**more, "trace": seen}
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask, **given).last_hidden_state
        weights = None if attention_mask is None else attention_mask.to(hidden.dtype)
        if seen is not None and self.pools_kept:
            weights = seen.layers[-1].keep_of_all(hidden.shape[1])
        return SequenceClassifierOutput(logits=self.head(hidden, weights))

    @property
    def _is_pruned(self) -> bool:
        return isinstance(getattr(self.body, family_of(self).encoder), PrunedEncoder)

    def save_pretrained(self, folder: Any, state_dict: Mapping[str, Tensor] | None = None, **more: Any) -> None:
        """Write the encoder as transformers does, and the modules of sentence-transformers beside it."""
        prefix = f"{self.base_model_prefix}."
        tensors = self.state_dict() if state_dict is None else state_dict
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        self.body.save_pretrained(folder, state_dict=own, **more)
        folder = Path(folder)
        rows = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
        for number, ((kind, given), step) in enumerate(zip(self.head.settings, self.head.steps, strict=True), 1):
            path = f"{number}_{kind}"
            rows.append(
                {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            )
            (folder / path).mkdir(exist_ok=True)
            _write(folder / path / "config.json", _stored_settings(kind, given))
            if weights := {name: tensor.detach().contiguous() for name, tensor in step.state_dict().items()}:
                save_file(weights, folder / path / "model.safetensors")
        _write(folder / MODULES, rows)
        _write(folder / SETTINGS, {"model_type": EMBEDDER, **self.about})

    def save_length(self, folder: Path, length: int) -> None:
        """Write the number of tokens at which texts are cut, beside the model."""
        _write(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})


def load_head(folder: SentenceFolder, modules: Sequence[tuple[str, Mapping[str, Any]]], config: Any) -> VectorHead:
    """Return the modules after the Transformer of a folder with their weights; `modules` are kinds and settings.

    Raises:
        ConfigError: as of `VectorHead`, or the weights do not fit.
    """
    head = VectorHead(modules, config.hidden_size, str(folder.folder))
    for part, step in zip(folder.head, head.steps, strict=True):
        _load_weights(part, step)
    return head


def _load_weights(part: SentenceModule, step: nn.Module) -> None:
    if not list(step.parameters()):
        return
    try:
        step.load_state_dict(read_weights(part))
    except (RuntimeError, TypeError) as error:
        raise _misfit(str(part.folder), part.kind, first_line(error)) from error


def _stored_settings(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under the names that every version of sentence-transformers reads, where there are such."""
    if kind == "Pooling":
        modes = list(given["pooling_mode"])
        if modes != [mode for mode in OLD_POOLINGS.values() if mode in modes]:
            return {**given, "pooling_mode": modes}
        flags = {name: mode in modes for name, mode in OLD_POOLINGS.items() if mode in POOLINGS}
        return {"word_embedding_dimension": given["embedding_dimension"], **flags}
    names = {"Dense": ("in_features", "out_features", "bias", "activation_function"), "Normalize": ()}.get(kind)
    stored = dict(given) if names is None else {name: given[name] for name in names}
    return stored | ({"use_residual": True} if given.get("use_residual") else {})


def _write(path: Path, content: Any) -> None:
    atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
