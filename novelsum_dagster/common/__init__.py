"""What the package has in common: errors, files, progress, devices, memory. It knows nothing of the rest."""
