"""A run from start to end: train, evaluate, fine-tune."""
