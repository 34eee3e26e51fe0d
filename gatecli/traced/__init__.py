"""Plain data, below everything."""
