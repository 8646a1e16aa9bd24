"""From results to the pages of the docs."""
