"""All methods on one network: accuracy against measured milliseconds."""
