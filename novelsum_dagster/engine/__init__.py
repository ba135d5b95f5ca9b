"""Where the heavy work runs: in this process, or on Ray. Only this package imports Ray."""
