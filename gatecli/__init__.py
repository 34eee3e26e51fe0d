"""gatecli: put gates into a trained image classifier, train them, and remove what never runs.

Every command of the command line is a function here. Importing the package does not import torch;
the first use of a name does.
"""

from __future__ import annotations

# typing's own would have to be imported, and Ctrl-C is taken care of only after this module
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gatecli.calibration.exits.calibrate import calibrate_exits
    from gatecli.calibration.gates.calibrate import calibrate
    from gatecli.checkpoint import load, write
    from gatecli.data import load_data
    from gatecli.errors import GatecliError
    from gatecli.exporting.export import export
    from gatecli.gates.observe import force, record_gates
    from gatecli.network import Network
    from gatecli.stages.attach import attach
    from gatecli.stages.evaluate import evaluate
    from gatecli.stages.fit import fit
    from gatecli.stages.profile import profile
    from gatecli.stages.prune import prune
    from gatecli.training import TrainOptions
    from gatecli.training.finetune import finetune

__version__ = "0.2.0"
__all__ = [
    "GatecliError",
    "Network",
    "TrainOptions",
    "attach",
    "calibrate",
    "calibrate_exits",
    "evaluate",
    "export",
    "finetune",
    "fit",
    "force",
    "load",
    "load_data",
    "profile",
    "prune",
    "record_gates",
    "write",
]
_HOMES = {
    "GatecliError": "errors",
    "Network": "network",
    "TrainOptions": "training",
    "attach": "stages.attach",
    "calibrate": "calibration",
    "calibrate_exits": "calibration.exits.calibrate",
    "evaluate": "stages.evaluate",
    "export": "exporting.export",
    "finetune": "training",
    "fit": "stages.fit",
    "force": "gates.observe",
    "load": "checkpoint",
    "load_data": "data",
    "profile": "stages.profile",
    "prune": "stages.prune",
    "record_gates": "gates.observe",
    "write": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `gatecli` has no attribute `{name}`")
    from importlib import import_module

    return getattr(import_module(f"gatecli.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
