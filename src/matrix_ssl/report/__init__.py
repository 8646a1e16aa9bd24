"""The page of a run: one HTML file that opens offline. Imports no torch."""

from matrix_ssl.report.run.page import write_report

__all__ = ["write_report"]
