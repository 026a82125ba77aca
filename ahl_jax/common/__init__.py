"""Errors, files, words and progress, which every room uses."""
