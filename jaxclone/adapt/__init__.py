"""How a model becomes one person's voice."""
