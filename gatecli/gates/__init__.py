"""What decides at run time: gates and exits, how they are trained, observed and forced."""
