"""Trained detectors behind HTTP."""
