"""mlflow[:URI], a server, a data base (sqlite:///FILE) or, without a scheme, a folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatecli.tracking.base import Service, Told, Tracker, needs, register

__all__ = ["MlFlow"]

EXPERIMENT = "gatecli"
LONGEST = 500  # characters of a parameter that every store takes
BATCH = 100  # parameters in one call, at most


class MlFlow(Tracker):
    """A run of the experiment `gatecli`; without a URI where MLFLOW_TRACKING_URI says."""

    def __init__(self, uri: str) -> None:
        self._library = needs("mlflow", "mlflow", "mlflow")
        self.uri = uri
        self._client: Any = None
        self._run = ""

    def begin(self, told: Told) -> str:
        folder = _folder(self.uri)
        uri = self.uri if folder is None else Path(folder).resolve().as_uri()
        self._client = self._library.MlflowClient(tracking_uri=uri or None)
        if told.known is not None:
            self._run = told.known
            self._client.update_run(self._run, status="RUNNING")
            return self._run
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else None
        number = number or self._client.create_experiment(EXPERIMENT)
        self._run = self._client.create_run(number, run_name=told.name).info.run_id
        parameter = self._library.entities.Param
        config = [parameter(name, str(each)[:LONGEST]) for name, each in told.config.items()]
        for first in range(0, len(config), BATCH):
            self._client.log_batch(self._run, params=config[first : first + BATCH])
        return self._run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        metric = self._library.entities.Metric
        now = int(time.time() * 1000)
        metrics = [metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        if self._run:
            self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


def _folder(uri: str) -> str | None:
    return uri if uri and ":" not in uri else None


register(Service(name="mlflow", operand="URI", track=MlFlow, folder=_folder))
