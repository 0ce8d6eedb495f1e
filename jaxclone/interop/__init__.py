"""Published checkpoints of other projects, in and out: one table of names a format."""
