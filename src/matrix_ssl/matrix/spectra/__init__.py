"""Eigenvalues and functions of them, with derivatives that are finite and correct where eigenvalues coincide."""
