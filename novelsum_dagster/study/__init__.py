"""Studies of whether more diverse sets train better models: a proxy for performance, compared with the measures."""
