"""Protocols on frozen features."""
