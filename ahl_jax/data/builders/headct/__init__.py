"""HeadCT: slices of the head with and without haemorrhage."""
