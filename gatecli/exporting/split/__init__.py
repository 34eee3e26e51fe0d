"""Networks with exits in pieces: a file a stage, and a runner that needs their runtime alone."""
