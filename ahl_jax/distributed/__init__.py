"""Devices and processes: what lies where, and what crosses between them."""
