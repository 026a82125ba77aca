"""Speed and memory, as ratios in one run or fractions of the machine's matrix-product peak."""
