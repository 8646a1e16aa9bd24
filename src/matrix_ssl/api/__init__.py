"""Pre-training and evaluation as functions of Python, which raise this package's errors and never exit the process."""
