"""Mastcam: multispectral images of the surface of Mars."""
