"""Questions and answers: files, prompts and tokens."""
