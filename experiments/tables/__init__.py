"""Methods, cells, sweeps, statistics and reports of the paper's tables."""
