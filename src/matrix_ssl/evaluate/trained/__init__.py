"""Protocols that train a network."""
