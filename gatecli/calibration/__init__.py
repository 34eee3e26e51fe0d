"""calibrate: choose the gates' thresholds on val, for an asked accuracy or an asked cost."""

from gatecli.calibration.gates.calibrate import Calibrated, calibrate
from gatecli.calibration.gates.goal import Asked, check_target
from gatecli.calibration.gates.points import Point, site_values
from gatecli.calibration.reference import Reference, open_notes

__all__ = [
    "Asked",
    "Calibrated",
    "Point",
    "Reference",
    "calibrate",
    "check_target",
    "open_notes",
    "site_values",
]
