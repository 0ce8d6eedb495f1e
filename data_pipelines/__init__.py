"""Files, corpora and the order of examples."""
