"""Trainings whose accuracy is the result."""
