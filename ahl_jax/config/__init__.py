"""The settings of a run, their ranges and their presets."""
