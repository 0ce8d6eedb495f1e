"""The `jaxclone` command: one verb a file."""
