"""calibrate: choose the gates' thresholds on val, for an asked accuracy or an asked cost."""

from gatecli.calibration.gates.calibrate import Calibrated, calibrate
from gatecli.calibration.gates.goal import Asked, check_target
from gatecli.calibration.gates.points import Point, site_values

__all__ = ["Asked", "Calibrated", "Point", "calibrate", "check_target", "site_values"]
