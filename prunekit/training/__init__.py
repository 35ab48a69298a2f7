"""The Lightning corner: fitting, checkpoints, progress and what a resumed run restores."""
