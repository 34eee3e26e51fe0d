"""Choose the thresholds of a network's exits, all of them at once, from one pass over val."""
