"""Choose the gates' thresholds by measuring settings of them, each by a real pass over val."""
