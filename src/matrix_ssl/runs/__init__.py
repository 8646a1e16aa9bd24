"""What every run has: a folder, files, metrics, checkpoints, an environment, signals and a display."""
