"""What all runs share: folder, files, metrics, checkpoints, environment, signals and display."""
