"""A run's results as one HTML file that opens without a network; and several side by side."""

from ahl_jax.reports.build import compare, report

__all__ = ["compare", "report"]
