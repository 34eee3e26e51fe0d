"""What decides at run time: gates and exits, how they are trained, observed and forced."""

from gatecli.gates.decider import Decider
from gatecli.gates.exit import Exit
from gatecli.gates.gate import Gate

__all__ = ["Decider", "Exit", "Gate"]
