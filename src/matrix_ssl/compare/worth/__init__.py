"""Was it worth it? A public encoder as is, adapted, and pre-training from scratch, at several label counts."""
