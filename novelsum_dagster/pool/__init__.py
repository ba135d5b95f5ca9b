"""From files and datasets of instruction data to a snapshot of samples."""
