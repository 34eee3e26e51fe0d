"""The data classes behind the commands' JSON: the site shows them, a test compares docs/json.md."""

from __future__ import annotations

__all__ = ["JSON_OBJECTS"]

# The command, the module, and its data classes.
JSON_OBJECTS = (
    ("doctor", "gatecli.stages.doctor", ("Checkup", "Processor", "Threads", "RuntimeState")),
    ("doctor", "gatecli.stages.installed", ("Extra",)),
    ("profile", "gatecli.stages.profile", ("Latency", "Row", "SiteRow")),
    ("gates", "gatecli.stages.analyse", ("SiteUse",)),
    ("gates", "gatecli.stages.alike", ("Counts", "Distances")),
    ("run", "gatecli.stages.classify", ("Prediction",)),
    ("log", "gatecli.traced.recipe", ("Step",)),
    ("price", "gatecli.traced.latency", ("SiteTimes",)),
    ("export", "gatecli.stages.int8", ("Int8", "Side")),
    ("export", "gatecli.stages.for_processor", ("ForProcessor",)),
    ("eval", "gatecli.stages.predict", ("ExitScore",)),
    ("calibrate", "gatecli.cli.frontier", ("Figures",)),
)
