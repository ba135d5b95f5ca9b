"""Shared utilities: errors, files, progress, devices, memory. Imports no other part of the package."""
