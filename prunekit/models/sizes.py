"""What the families of encoders call the sizes of their layers in config.json."""

from __future__ import annotations

from typing import NamedTuple


class SizeNames(NamedTuple):
    """The names of four sizes; of a translator, those of its encoder."""

    layers: str
    hidden: str
    heads: str
    ffn: str


USUAL = SizeNames("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
UNUSUAL = {
    "distilbert": SizeNames("n_layers", "dim", "n_heads", "hidden_dim"),
    "t5": SizeNames("num_layers", "d_model", "num_heads", "d_ff"),
    "marian": SizeNames("encoder_layers", "d_model", "encoder_attention_heads", "encoder_ffn_dim"),
}


def size_names(family: str) -> SizeNames:
    """Return the names that a family uses."""
    return UNUSUAL.get(family, USUAL)


def aliases() -> dict[str, tuple[str, ...]]:
    """Return all families' names of each size, by the usual name, which comes first."""
    return {names[0]: names for names in zip(USUAL, *UNUSUAL.values(), strict=True)}
