"""Whether a more diverse set trains a better model: the proxy for performance and what it is compared with."""
