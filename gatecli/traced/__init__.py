"""Plain data, below everything: a traced network, its sites, and a checkpoint's recipe."""
