"""Embedding of samples: each text is embedded once, and its vector stored."""
