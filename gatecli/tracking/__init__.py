"""Where a run's log is shown beside its folder (`finetune --track`): one file a service here.

Trackers listen to the run (`training/run.py`); the training loop knows none of them. Importing the
package registers them all, and imports none of their packages.
"""

from __future__ import annotations

from gatecli.importing import import_modules_of
from gatecli.tracking.base import Service, Told, Tracker, find, listed, local_folder, register

import_modules_of(__name__)

__all__ = ["Service", "Told", "Tracker", "find", "listed", "local_folder", "register"]
