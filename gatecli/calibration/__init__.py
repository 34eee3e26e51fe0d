"""calibrate: choose the gates' thresholds on val, for an asked accuracy at the fewest MACs."""

from gatecli.calibration.gates.calibrate import Calibrated, calibrate, check_target
from gatecli.calibration.gates.points import Point, site_values

__all__ = ["Calibrated", "Point", "calibrate", "check_target", "site_values"]
