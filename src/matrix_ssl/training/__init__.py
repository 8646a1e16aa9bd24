"""Pre-training: configuration, building, the loop, optimizers and diagnostics."""
