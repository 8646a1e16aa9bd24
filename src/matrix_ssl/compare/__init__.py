"""Compares self-supervised methods under equal conditions: plan, runs, statistics and page."""
