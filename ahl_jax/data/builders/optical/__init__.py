"""Optical: the ten classes of DAGM 2007."""
