"""Scores and the report that shows them."""
