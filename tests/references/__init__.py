"""Literal, slow transcriptions of the papers. Nothing here imports foveate."""
