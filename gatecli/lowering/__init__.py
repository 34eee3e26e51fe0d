"""How a graph that says what a network means becomes one that skips; knows no kind of site."""
