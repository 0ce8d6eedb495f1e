"""One small file a corpus."""
