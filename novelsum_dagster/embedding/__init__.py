"""From a sample's text to its vector, embedded once and kept."""
