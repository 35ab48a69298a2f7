"""Data: tasks as descriptions, where they come from, and batches whose order is a pure function of a position."""
