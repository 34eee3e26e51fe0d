"""Try the smallest network of each of timm's families, and write docs/supported-networks.md.

python docs/experiments/supported_networks.py --csv networks.csv            # goes on where it was
python docs/experiments/supported_networks.py --csv networks.csv --table    # the table alone

Each network runs in a process of its own, which ends after --per-model seconds of CPU time, or four
times as long by the clock. Weights are random; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

METHODS = ("ind-perbatch", "aig-perbatch", "dgate", "cgnet", "gaternet")
LIGHT = ("ind-perbatch", "dgate")  # the methods tried on a heavy network
HEAVY_PARAMS, HEAVY_MACS, DEAR = 40e6, 2e9, 0.6e9
SIZES = (64, 96, 128, 160)  # to compare at, where the official size is dear
EXACT = 1e-5  # of the largest logit
BEGIN = "Printed by `python docs/experiments/supported_networks.py --csv FILE --table`"
PLACE = Path(__file__).parents[1] / "supported-networks.md"
Report = Callable[..., None]
Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, default=Path("networks.csv"))
    parser.add_argument("--families", default="", help="with commas between; none: all")
    parser.add_argument("--budget", type=float, default=4 * 3600, help="seconds in all")
    parser.add_argument("--per-model", type=int, default=200, help="seconds of CPU time")
    parser.add_argument("--table", action="store_true", help="only write the table")
    given = parser.parse_args()
    rows = read_rows(given.csv)
    if not given.table:
        sweep(given, rows)
    text = PLACE.read_text(encoding="utf-8") if PLACE.exists() else ""
    PLACE.write_text(text.partition(BEGIN)[0] + table(list(rows.values())), encoding="utf-8")


def read_rows(path: Path) -> dict[str, Row]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["family"]: row for row in csv.DictReader(file)}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    fields: dict[str, None] = {}
    for row in rows:
        fields.update(dict.fromkeys(row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(fields), restval="")
        writer.writeheader()
        writer.writerows(rows)


# --- trying ---


def sweep(given: argparse.Namespace, rows: dict[str, Row]) -> None:
    """Try each family that has no row yet, and write the file after each."""
    import timm

    import gatecli  # noqa: F401  # here, so that the forked processes have it

    warnings.simplefilter("ignore")
    start = time.monotonic()
    for family in given.families.split(",") if given.families else timm.list_modules():
        if family in rows or time.monotonic() - start > given.budget:
            continue
        rows[family] = in_a_process(family, given.per_model)
        write_rows(given.csv, list(rows.values()))
        print(family, rows[family].get("arch"), rows[family].get("seconds"), flush=True)


def in_a_process(family: str, limit: int) -> Row:
    """What came of a family, as far as its process has come."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        try:
            examine(family, lambda **columns: theirs.send(columns))
        except BaseException as error:
            theirs.send({"error": first_line(error)})
        os._exit(0)

    start = time.monotonic()
    process = context.Process(target=work, daemon=True)
    process.start()
    theirs.close()
    row: Row = {"family": family}
    try:
        while mine.poll(max(0.0, start + 4 * limit - time.monotonic())):
            row |= {key: str(value) for key, value in mine.recv().items()}
        row["error"] = "ended at its limit of time"
        process.kill()
    except EOFError:
        pass
    process.join()
    if row.get("stage") != "done" and not row.get("error"):
        row["error"] = "ended at its limit of time"
    return row | {"seconds": f"{time.monotonic() - start:.0f}"}


def first_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def smallest(family: str) -> str:
    """The network of a family with the fewest parameters that can be built without memory.

    timm's networks for its own tests are left out: nobody deploys them.
    """
    import timm
    import torch

    counts = {}
    for name in timm.list_models(module=family):
        if name.startswith("test_"):
            continue
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:  # some look at their values while they are built
            continue
        counts[name] = sum(each.numel() for each in model.parameters())
    return (
        min(counts, key=lambda name: counts[name]) if counts else timm.list_models(module=family)[0]
    )


def examine(family: str, report: Report) -> None:
    import timm
    import torch

    from gatecli import checkpoint
    from gatecli.checkpoint import Reading
    from gatecli.probe import logits, random_images, relative_change

    name = smallest(family)
    torch.manual_seed(0)
    model = lively(timm.create_model(name, num_classes=1000).eval())
    count = sum(each.numel() for each in model.parameters())
    report(arch=name, mparams=f"{count / 1e6:.2f}", stage="inspect")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "plain.pt"
        torch.save(model.state_dict(), path)
        network, _ = checkpoint.read(path, Reading(arch=f"timm:{name}"))
        kinds = [site.kind for site in network.sites.values()]
        report(inspect="ok", gmacs=f"{network.macs_dense / 1e9:.3f}", blocks=kinds.count("block"))
        report(layers=kinds.count("layer"), exits=kinds.count("exit"), stage="compare")
        network = at_working_size(model, network, path, name)
        heavy = count > HEAVY_PARAMS or network.macs_dense > HEAVY_MACS
        images = random_images(network, 1 if heavy else 2)
        change = relative_change(logits(model, images), logits(network, images))
        report(size=network.input.size[0], trace_change=f"{change:.0e}")
        for method in LIGHT if heavy else METHODS:
            columns = try_method(network, method, model, images, Path(place))
            report(**{f"{method}.{key}": value for key, value in columns.items()})
    report(stage="done")


def lively(model: Any) -> Any:
    """Nothing hides behind a layer scale of nearly 0, or a BatchNorm that does nothing."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                low, high = (-0.1, 0.1) if name.endswith("bias") else (0.5, 1.5)
                parameter.uniform_(low, high)
            elif not bool(parameter.any()):
                parameter.normal_(0, 0.02)
    return model


def at_working_size(model: Any, network: Any, path: Path, name: str) -> Any:
    """The network for the first small images that the plain model takes, where its own are dear."""
    import torch

    from gatecli import checkpoint
    from gatecli.checkpoint import Reading

    if network.macs_dense <= DEAR:
        return network
    for size in SIZES:
        try:
            with torch.no_grad():
                model(torch.zeros(1, network.input.channels, size, size))
            how = Reading(arch=f"timm:{name}", input_size=(size, size))
            return checkpoint.read(path, how)[0]
        except Exception:  # it is for other sizes
            continue
    return network


def try_method(network: Any, method: str, model: Any, images: Any, place: Path) -> dict[str, str]:
    """Attach, write, load, prune, write, load; the columns of a method."""
    import gatecli
    from gatecli.checkpoint import load, write
    from gatecli.probe import logits, relative_change

    columns: dict[str, str] = {"status": "fails"}
    try:
        gated = gatecli.attach(network, method).network.eval()
        change = relative_change(logits(model, images), logits(gated, images))
        columns["attach"] = f"{change:.0e}"
        columns["reload_attached"] = reloaded(gated, images, place / "own.safetensors", write, load)
        rates = decide(gated)
        result = gatecli.prune(gated, rates=rates, static=0.5)
        columns["prune"] = f"{result.max_logit_change:.0e}"
        columns["stuck"] = str(len(result.stuck))
        after = result.network
        columns["reload_pruned"] = reloaded(after, images, place / "own.safetensors", write, load)
        columns["status"] = "ok"
    except Exception as error:
        columns["error"] = first_line(error)
        if "found nothing to gate" in columns["error"]:
            columns["status"] = "nothing"
    return columns


def reloaded(network: Any, images: Any, path: Path, write: Any, load: Any) -> str:
    import torch

    from gatecli.probe import logits

    path.unlink(missing_ok=True)
    write(network, path)
    return "equal" if torch.equal(logits(network, images), logits(load(path), images)) else "other"


def decide(gated: Any) -> dict[str, list[float]]:
    """Rates of 0 and 1, drawn at random, one 0 at least; of several exits the last is taken."""
    import torch

    from gatecli.gates import Exit

    draw = random.Random(0)
    exits = [site for site, gate in gated.site_gates.items() if isinstance(gate, Exit)]
    rates: dict[str, list[float]] = {}
    for site, gate in gated.site_gates.items():
        if site in exits:
            taken = len(exits) > 1 and site == exits[-1]
            gate.threshold.fill_(-1e9 if taken else 1e9)
            rates[site] = [float(taken)]
        else:
            rates[site] = [float(draw.random() < 0.5) for _ in range(gate.units)]
        if not gate.data_dependent:
            odds = [[0.0, 9.0] if unit else [9.0, 0.0] for unit in rates[site]]
            with torch.no_grad():
                gate.logits.copy_(torch.tensor(odds))
    if all(all(units) for units in rates.values()):
        next(iter(rates.values()))[0] = 0.0
    return rates


# --- the table ---


def table(rows: Sequence[Row]) -> str:
    rows = sorted(rows, key=lambda row: row["family"])
    seconds = [float(row["seconds"]) for row in rows if row.get("seconds")]
    traced = sum(row.get("inspect") == "ok" for row in rows)
    lines = [
        f"{BEGIN}: {len(rows)} families, {traced} of them read; median"
        f" {statistics.median(seconds):.0f} s a network (one thread of a busy machine).",
        "",
        "| family | network | M params | GMACs | blocks, layers, exits | "
        + " | ".join(METHODS)
        + " | what does not work |",
        "|---" * (6 + len(METHODS)) + "|",
    ]
    for row in rows:
        sites = "/".join(row.get(key) or "-" for key in ("blocks", "layers", "exits"))
        cells = [row["family"], row.get("arch", ""), row.get("mparams", ""), row.get("gmacs", "")]
        cells += [sites, *(cell(row, method) for method in METHODS), why(row)]
        lines.append("| " + " | ".join(each.replace("|", "/") for each in cells) + " |")
    return "\n".join(lines) + "\n"


def cell(row: Row, method: str) -> str:
    """`exact`, what is not, or why it was not tried."""
    status = row.get(f"{method}.status") or "not tried"
    if status == "nothing":
        return "no site"
    if status != "ok":
        return status
    for step in ("attach", "prune"):
        value = float((row.get(f"{method}.{step}") or "0").split()[0])
        if value > EXACT:
            return f"{step} {value:.0e}"
    for step in ("reload_attached", "reload_pruned"):
        if row.get(f"{method}.{step}") != "equal":
            return step.replace("_", " ")
    return "exact"


def why(row: Row) -> str:
    errors = [row.get("error", ""), *(row.get(f"{method}.error", "") for method in METHODS)]
    there = [each for each in errors if each and "found nothing to gate" not in each]
    return there[0][:160] if there else ""


if __name__ == "__main__":
    main()
