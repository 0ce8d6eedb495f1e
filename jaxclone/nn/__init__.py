"""Reusable parameterised layers."""
