"""Open-set anomaly detection from normal images and a handful of labelled defects, in JAX."""
