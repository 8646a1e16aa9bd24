"""Evaluates representations: kNN, linear and low-shot protocols on feature matrices, and pictures of the space."""
