"""Trainers for transformers and trl with the loss, and complete fine-tuning runs."""
