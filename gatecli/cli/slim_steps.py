"""The commands that gatecli slim stands for, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatecli.cli.road import Road
from gatecli.cli.session import Session
from gatecli.cli.slim_options import How
from gatecli.cli.typed import spelled
from gatecli.cli.workspace import default_out
from gatecli.errors import SettingError

__all__ = ["REPEATS", "Asked", "Slimmed", "Slimming"]

REPEATS = 30  # timed calls
TUNED, PRUNED, CALIBRATED, PRICED = "tuned", "pruned", "calibrated", "priced"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asks for.

    Attributes:
        source: The checkpoint to begin with.
        data: The data set.
        goal: The option that names the goal, max_drop, max_gmacs or max_ms.
        limit: Its number.
        how: What is gated, how it is trained, where it is timed.
        reading: The options with which the source is read, as words.
        code: Those of them that name code: every later file needs them again.
        out: The last file.
        force: Whether files that are there may be replaced.
    """

    source: Path
    data: str
    goal: str
    limit: float
    how: How
    reading: Sequence[str]
    code: Sequence[str]
    out: Path
    force: bool

    @property
    def goal_words(self) -> tuple[str, float]:
        """The goal as a command takes it."""
        return (f"--{self.goal.replace('_', '-')}", self.limit)

    @property
    def where(self) -> tuple[str, ...]:
        """Where it is timed, as a command takes it."""
        return ("--runtime", self.how.runtime, "--precision", self.how.precision)

    @property
    def gated(self) -> Path:
        """What attach writes."""
        return default_out(self.source, self.how.method)

    @property
    def outs(self) -> list[Path]:
        """The files that are sure to be written, in order."""
        found = [self.gated]
        names = [PRICED, TUNED] if self.goal == "max_ms" else [TUNED]
        for name in names:
            found.append(default_out(found[-1], name))
        return [*found, self.out]


@dataclass(frozen=True, kw_only=True)
class Slimmed:
    """What the commands have made.

    Attributes:
        tuned: The JSON of the training with gates.
        dynamic: Whether gates were put in that look at images.
    """

    tuned: Mapping[str, Any]
    dynamic: bool


class Slimming:
    """Takes the commands one after the other."""

    def __init__(self, session: Session, road: Road, asked: Asked) -> None:
        self.session = session
        self.road = road
        self.asked = asked

    def slim(self) -> Slimmed:
        """Run every command that makes a file.

        Raises:
            GatecliError: What a command stopped at.
        """
        about = self.of_source("inspect")
        self._check_unmet("GMACs", about["macs_dense"] / 1e9, goal="max_gmacs")
        if self._by_time:
            timing = ("--no-sites", "--repeats", REPEATS, *self.asked.where)
            row = self.of_source("profile", *timing)["rows"][0]
            self._check_unmet("ms", row["latency_ms"]["1"]["median"], goal="max_ms")
        gated = self._attach(about)
        if self._by_time:
            gated = _out(self._make("price", gated, PRICED, *self.asked.where))
        tuned = self._finetune(gated)
        dynamic = self._asks_images(gated)
        self._cut(tuned, dynamic=dynamic)
        return Slimmed(tuned=tuned, dynamic=dynamic)

    def _check_unmet(self, unit: str, now: float, *, goal: str) -> None:
        """Raises SettingError where the source itself is all that is asked for."""
        asked = self.asked
        if asked.goal == goal and now <= asked.limit:
            raise SettingError(
                f"the source meets {spelled(*asked.goal_words)} as it is, with {now:.4g} {unit} an"
                " image: ask for less; nothing was written"
            )

    def of_source(self, command: str, *words: object) -> dict[str, Any]:
        """Run a command that writes nothing on the source, and return its JSON."""
        line = spelled(command, self.asked.source, *words, *self.asked.reading)
        return self.road.take(line, reads=[self.asked.source])

    def _make(
        self,
        command: str,
        path: Path,
        done: str,
        *words: object,
        last: bool = False,
        replace: bool = False,
    ) -> dict[str, Any]:
        """Run a command that writes a file, and return its JSON.

        Args:
            command: Its name.
            path: What it reads.
            done: What the name of its output says.
            words: Its options.
            last: Whether it writes the result.
            replace: Whether the result may have been written already.
        """
        asked = self.asked
        out = asked.out if last else default_out(path, done)
        named: list[object] = ["--out", out] if last else []
        named += ["--force"] if replace else []
        line = spelled(command, path, *words, *named, *asked.code)
        return self.road.take(line, reads=[path], out=out, force=asked.force and not replace)

    def _attach(self, about: Mapping[str, Any]) -> Path:
        how = self.asked.how
        words: list[object] = ["attach", self.asked.source, "--method", how.method]
        for kind in how.kind or self._kinds(about):
            words += ["--kind", kind]
        for name, values in (("set", how.set_), ("include", how.include), ("exclude", how.exclude)):
            for value in values or ():
                words += [f"--{name}", value]
        line = spelled(*words, *self.asked.reading)
        out = self.asked.gated
        self.road.take(line, reads=[self.asked.source], out=out, force=self.asked.force)
        return out

    def _kinds(self, about: Mapping[str, Any]) -> list[str]:
        """The kinds to name: none where the method gates its own, else the first that it can."""
        from gatecli import methods

        card = methods.get(self.asked.how.method).about
        there = {site["kind"] for site in about["sites"]}
        own = [kind for kind in card.default_kinds if kind in there]
        others = [kind for kind in card.kinds() if kind in there]
        chosen = [] if own or not others else others[:1]
        gates = ", ".join(chosen or own) or "nothing"
        self.session.say(
            f"gating {gates} by {card.name} (--kind, --method: other sites, another method)"
        )
        return chosen

    def _training(self, epochs: int, lr: float) -> list[object]:
        """The options of a training."""
        how = self.asked.how
        words = ["--data", self.asked.data, "--epochs", epochs, "--lr", lr]
        words += ["--batch-size", how.batch_size, "--schedule", "cosine"]
        return words + ([] if how.workers is None else ["--workers", how.workers])

    def _finetune(self, gated: Path) -> dict[str, Any]:
        how = self.asked.how
        words = self._training(how.epochs, how.lr)
        return self._make("finetune", gated, TUNED, *words, *self.asked.goal_words)

    def _finish(self, pruned: Path, *, last: bool = True) -> dict[str, Any]:
        """Train what prune has left."""
        how = self.asked.how
        words = self._training(how.finish_epochs, how.finish_lr)
        return self._make("finetune", pruned, TUNED, "--train", "weights", *words, last=last)

    def _asks_images(self, gated: Path) -> bool:
        """Whether the gates that were put in look at images, so that they have thresholds."""
        from gatecli import checkpoint

        code = dict(zip(self.asked.code[::2], self.asked.code[1::2], strict=True))
        network = checkpoint.load(gated, code.get("--arch"))
        return any(gate.data_dependent for gate in network.site_gates.values())

    def _cut(self, tuned: Mapping[str, Any], *, dynamic: bool) -> None:
        """What comes after the training.

        Thresholds are chosen before prune, which decides by them. Where gates stay they are chosen
        again behind the last training, as gates then see other values.
        """
        data = ("--data", self.asked.data)
        goal = self._threshold_goal(tuned)
        done = tuned
        if goal:
            done = self._make("calibrate", _out(tuned), CALIBRATED, *data, *goal)
        last = self.asked.how.finish_epochs == 0
        pruning: list[object] = [*data] if dynamic else []
        if dynamic and self._by_time:
            pruning += ["--decide", "measured", *self.asked.where]
        pruned = self._make("prune", _out(done), PRUNED, *pruning, last=last)
        if last:
            return
        again = bool(goal) and bool(pruned["kept_dynamic"])
        finished = self._finish(_out(pruned), last=not again)
        if again:
            self._make("calibrate", _out(finished), CALIBRATED, *data, *goal, last=True)
        elif finished["top1"] < done["top1"]:
            self.session.say(
                f"note: the last epochs took val top-1 from {done['top1']:.2f} to"
                f" {finished['top1']:.2f}, so the result is what prune had left;"
                " a lower --last-lr may do better"
            )
            self._make("prune", _out(done), PRUNED, *pruning, last=True, replace=True)

    @property
    def _by_time(self) -> bool:
        return self.asked.goal == "max_ms"

    def _threshold_goal(self, tuned: Mapping[str, Any]) -> tuple[object, ...]:
        """What thresholds shall reach; nothing where the training has fallen short of it.

        The accuracy is the source's, less the drop: with all gates open the trained network may
        have another one.
        """
        if self.asked.goal != "max_drop":
            return (*self.asked.goal_words, *(self.asked.where if self._by_time else ()))
        target = max(0.0, tuned["baseline_top1"] - self.asked.limit)
        if tuned["top1"] >= target:
            return ("--target-acc", target)
        self.session.say(
            f"note: the training came to {tuned['top1']:.2f} of {target:.2f} asked on val, so no"
            " thresholds can be chosen for it: train for more --epochs"
        )
        return ()


def _out(result: Mapping[str, Any]) -> Path:
    """The file that a command wrote."""
    return Path(result["out"])
