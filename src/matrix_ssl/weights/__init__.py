"""Weights in and out, strictly: other programs' checkpoints become runs, and runs become files for other programs."""
