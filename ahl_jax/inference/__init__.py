"""A trained detector in use: scores, thresholds, heat maps, exported files."""
