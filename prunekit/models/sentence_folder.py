"""Folders of sentence-transformers: what modules.json lists, with the settings of each module. Imports no torch.

`SentenceTransformer.save` and, since version 5, `CrossEncoder.save` write such folders. Of a plain cross-encoder they
list one module; older ones have no modules.json, and are folders of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from prunekit.config.errors import ConfigError, first_line, listed, quoted

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
RERANKER, EMBEDDER = "CrossEncoder", "SentenceTransformer"  # as `model_type` names them
SCORES = "scores"  # what the last module of a CrossEncoder gives
PACKAGE = "sentence_transformers."
# the modules that are computed here, with the file of their settings and the values of those that are left out
KNOWN: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Transformer": (
        "sentence_bert_config.json",
        {"transformer_task": "feature-extraction", "max_seq_length": None, "do_lower_case": False},
    ),
    "Pooling": ("config.json", {"include_prompt": True}),
    "Dense": (
        "config.json",
        {
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
            "module_input_name": "sentence_embedding",
            "use_residual": False,
        },
    ),
    "LayerNorm": ("config.json", {}),
    "Normalize": ("config.json", {"module_input_name": "sentence_embedding"}),
    "Dropout": ("config.json", {}),
}
OLD_POOLINGS = {  # a boolean each, before `pooling_mode`
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = ("Identity", "Sigmoid", "Tanh", "ReLU", "GELU", "SiLU", "LeakyReLU", "ELU")


@dataclass(frozen=True)
class SentenceModule:
    """One module: its kind, a name of `KNOWN`; the folder of its files; and its settings, those left out filled in.

    `pooling_mode` of a Pooling is a tuple of modes, and `module_output_name` is always there where it has a meaning.
    """

    kind: str
    folder: Path
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class SentenceFolder:
    """A folder with modules.json: its modules, of which the first is the Transformer, and the settings of the whole.

    `model_type` is "SentenceTransformer", "CrossEncoder" or another class of sentence-transformers.
    """

    folder: Path
    model_type: str
    modules: tuple[SentenceModule, ...]
    settings: Mapping[str, Any]

    @property
    def transformer(self) -> SentenceModule:
        """The module that reads texts."""
        return self.modules[0]

    @property
    def head(self) -> tuple[SentenceModule, ...]:
        """The modules after the Transformer, in their order; empty where the Transformer has a head of its own."""
        return self.modules[1:]

    @property
    def default_prompt(self) -> str:
        """The text that precedes every input unless its user says otherwise; "" where there is none."""
        prompts, name = self.settings.get("prompts"), self.settings.get("default_prompt_name")
        return str(prompts.get(name) or "") if isinstance(prompts, Mapping) and name is not None else ""


def read_sentence_folder(folder: str | Path) -> SentenceFolder | None:
    """Return what the modules.json of a folder lists; None where there is none.

    Raises:
        ConfigError: it cannot be read, or lists a module that is not computed here, which the message names.
    """
    folder = Path(folder)
    if not (folder / MODULES).is_file():
        return None
    rows = _read(folder / MODULES)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise _unreadable(folder / MODULES, "no list of modules")
    modules = tuple(_module(folder, row) for row in rows)
    names = [module.kind for module in modules]
    if names[0] != "Transformer" or "Transformer" in names[1:]:
        raise ConfigError(
            f"{folder / MODULES} lists {listed(names)}.\nAllowed: one Transformer, and modules of a head after it.\n"
            "Give another model."
        )
    settings = _read(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if not isinstance(settings, Mapping):
        raise _unreadable(folder / SETTINGS, "no object")
    found = SentenceFolder(folder, str(settings.get("model_type") or EMBEDDER), modules, settings)
    _check_lower_case(found)
    return found


def scores_of(folder: str | Path) -> int | None:
    """Return how many scores the modules of a CrossEncoder give; None where it has none after its Transformer.

    Raises:
        ConfigError: its modules cannot be read, or are not computed here.
    """
    found = read_sentence_folder(folder)
    if found is None or found.model_type != RERANKER or not found.head:
        return None
    last = found.head[-1]
    size = last.settings.get("out_features")
    if last.kind != "Dense" or last.settings["module_output_name"] != SCORES or not isinstance(size, int):
        raise ConfigError(
            f"{found.folder / MODULES}: the last module of this CrossEncoder is a {last.kind}, which gives no scores.\n"
            f"Allowed: a Dense whose module_output_name is {SCORES}.\nGive another model."
        )
    return size


def is_embedder(folder: str | Path) -> bool:
    """Return whether a folder is that of a SentenceTransformer, whatever its modules; false where it is unreadable."""
    try:
        rows, place = _read(Path(folder) / MODULES), Path(folder) / SETTINGS
        settings = _read(place) if place.is_file() else {}
    except ConfigError:
        return False
    types = [str(row.get("type")) for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    named = settings.get("model_type") if isinstance(settings, Mapping) else None
    return any(name.rpartition(".")[2] == "Pooling" for name in types) and (named or EMBEDDER) == EMBEDDER


def longest_text_set(folder: str | Path) -> int | None:
    """Return the number of tokens at which an embedder's folder says that texts are cut; None where it does not say."""
    files = sorted(Path(folder).glob("sentence_*_config.json"))
    try:
        stored = _read(files[0]) if files and is_embedder(folder) else {}
    except ConfigError:
        return None
    length = stored.get("max_seq_length") if isinstance(stored, Mapping) else None
    return length if isinstance(length, int) and not isinstance(length, bool) else None


def head_files(folder: str | Path) -> list[Path]:
    """Return the files of the modules after the Transformer, and what lists them; none without modules.json."""
    folder = Path(folder)
    try:
        rows = _read(folder / MODULES)
    except ConfigError:
        return []
    paths = [str(row.get("path") or "") for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    places = [folder / path for path in paths if path and ".." not in PurePosixPath(path).parts]
    found = [file for place in places for file in place.glob("*") if file.suffix in (".json", ".safetensors", ".bin")]
    return sorted([folder / MODULES, *found])


def read_weights(module: SentenceModule) -> dict[str, Any]:
    """Return the tensors of a module by their names, such as linear.weight; nothing is unpickled but tensors.

    Raises:
        ConfigError: they cannot be read.
    """
    import torch  # a configuration is checked without it
    from safetensors.torch import load_file  # as above

    safe, pickled = (module.folder / name for name in ("model.safetensors", "pytorch_model.bin"))
    try:
        if safe.is_file():
            return dict(load_file(safe))
        return dict(torch.load(pickled, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever a broken file brings about
        raise ConfigError(
            f"{module.folder} has no weights of its {module.kind} that can be read ({first_line(error)}).\n"
            "Allowed: model.safetensors, or pytorch_model.bin of tensors alone.\n"
            "Save the model again, or copy the whole folder."
        ) from error


def activation_name(given: Any, place: str | Path) -> str:
    """Return the name in torch.nn of an activation that a file at `place` names, as torch.nn.modules.linear.Identity.

    Raises:
        ConfigError: it is none of `ACTIVATIONS`; nothing of its name is imported.
    """
    module, _, name = str(given).rpartition(".")
    if name in ACTIVATIONS and (module == "torch.nn" or module.startswith("torch.nn.modules.")):
        return name
    raise ConfigError(
        f"{place} names the activation {quoted(given)}.\nAllowed: torch.nn's {', '.join(ACTIVATIONS)}.\n"
        "Give another model, or save it with one of these."
    )


def _module(folder: Path, row: Mapping[str, Any]) -> SentenceModule:
    given, path = str(row.get("type")), str(row.get("path") or "")
    kind = given.rpartition(".")[2]
    if kind not in KNOWN or not given.startswith(PACKAGE):
        raise ConfigError(
            f"{folder / MODULES} lists the module {quoted(given)}, which is not computed here.\n"
            f"Allowed: {', '.join(KNOWN)} of sentence_transformers; code in the folder is never run.\n"
            "Give a model that consists of these."
        )
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise ConfigError(
            f"{folder / MODULES} names the folder {quoted(path)} for its {kind}.\n"
            "Allowed: a folder inside that of the model.\nSave the model again."
        )
    file, defaults = KNOWN[kind]
    place = folder / path
    # older versions named the file after the family, as sentence_roberta_config.json
    files = sorted(place.glob("sentence_*_config.json"), key=lambda found: found.name != file)
    own = next(iter(files), place / file) if kind == "Transformer" else place / file
    stored = _read(own) if own.is_file() else {}
    if not isinstance(stored, Mapping):
        raise _unreadable(own, "no object")
    settings = {**defaults, **stored}
    if kind == "Pooling":
        settings = _pooling(settings)
    if "module_input_name" in defaults:
        settings["module_output_name"] = settings.get("module_output_name") or settings["module_input_name"]
    return SentenceModule(kind, place, settings)


def _pooling(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a Pooling under the names of today, with a tuple of modes."""
    modes = settings.get("pooling_mode") or [mode for name, mode in OLD_POOLINGS.items() if settings.get(name)]
    found = {name: value for name, value in settings.items() if name not in OLD_POOLINGS}
    if "word_embedding_dimension" in found:
        found.setdefault("embedding_dimension", found.pop("word_embedding_dimension"))
    return found | {"pooling_mode": (modes,) if isinstance(modes, str) else tuple(modes) or ("mean",)}


def _check_lower_case(found: SentenceFolder) -> None:
    """Check that texts need not be lower-cased before a tokenizer that does not do so itself.

    Raises:
        ConfigError: they need.
    """
    place = found.transformer.folder
    if not found.transformer.settings["do_lower_case"] or not (place / "tokenizer.json").is_file():
        return
    tokenizer = _read(place / "tokenizer.json")
    normalizer = json.dumps(tokenizer.get("normalizer") if isinstance(tokenizer, Mapping) else None)
    if '"lowercase": true' not in normalizer and "Lowercase" not in normalizer:
        raise ConfigError(
            f"{place} says do_lower_case, but its tokenizer keeps capitals: texts would be other tokens here.\n"
            "Allowed: a tokenizer that lower-cases texts itself.\n"
            "Load the model with sentence-transformers, and save it again: its tokenizer does so then."
        )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, first_line(error)) from error


def _unreadable(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read: {why}.\nAllowed: what sentence-transformers writes.\n"
        "Save the model again, or give another folder."
    )
