"""BrainMRI: slices of the brain with and without a tumour."""
