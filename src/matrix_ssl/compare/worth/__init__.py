"""Was it worth it? A public encoder used as it is, adapted, and pre-training from scratch, at several label counts."""
