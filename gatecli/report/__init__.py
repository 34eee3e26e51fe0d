"""A page about checkpoints: what was done to a network, and what became of it."""
