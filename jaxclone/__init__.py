"""Voice cloning in JAX: training on any mesh, speech in a new voice from seconds of reference."""

__version__ = "0.1.0"
