"""Cross-entropy plus matrix cross-entropy of the next token."""
