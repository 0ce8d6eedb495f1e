"""One training loop and the steps it runs."""
