"""Images and splits: which files there are, and which of them a run trains and tests on."""
