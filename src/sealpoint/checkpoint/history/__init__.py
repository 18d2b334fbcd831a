"""Checkpoints of one tree over time: increments, merging, freeing, retention; and a file's recipients over time."""
