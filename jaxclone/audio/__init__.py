"""Samples and spectra: everything that needs no parameters."""
