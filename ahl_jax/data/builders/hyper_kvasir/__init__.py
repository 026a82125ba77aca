"""Hyper-Kvasir: endoscopy of the upper digestive tract."""
