"""How many tokens an encoder has positions for. Imports no torch: configurations are checked without it."""

from __future__ import annotations

# families that number positions from the padding token's id + 1 on, and give that token itself none
AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")


def count_positions(family: str, positions: int | None, padding: int | None) -> int | None:
    """Return the most tokens of a text, from a configuration's max_position_embeddings and pad_token_id.

    None where positions are relative.
    """
    if positions is None or family not in AFTER_PADDING:
        return positions
    return positions - (padding or 0) - 1
