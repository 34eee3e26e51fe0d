"""Plain data, below everything: a traced network, its sites, and what a checkpoint says of itself."""
