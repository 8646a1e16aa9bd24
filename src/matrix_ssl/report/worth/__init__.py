"""The page that says whether pre-training was worth it."""
