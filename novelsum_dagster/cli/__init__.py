"""The command `novelsum`."""
