"""Engines that run the heavy work: in this process, or on Ray. Only this package imports Ray."""
