"""Trainers of transformers and trl with the loss, and a whole fine-tuning."""
