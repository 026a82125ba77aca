"""Reference outputs, the scripts that made them with PyTorch, and the inputs both sides share."""
