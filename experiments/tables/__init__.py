"""What the scripts of the paper's tables share: methods, cells, sweeps, statistics, reports."""
