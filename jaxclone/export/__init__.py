"""Models as files for others."""
