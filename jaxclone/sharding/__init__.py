"""Meshes and the rules that lay parameters out on them."""
