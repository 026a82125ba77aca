"""Frozen trunks: image -> feature map."""
