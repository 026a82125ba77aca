"""The command line: `ahl` and its commands."""
