"""Pseudo-anomalies from normal images."""
