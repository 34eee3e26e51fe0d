"""Rewrite the shipped table of timm's architectures.

Run it (python -m gatecli.architectures.generate_timm) when timm has other networks; the same timm
gives the same bytes. It takes some ten minutes. Architectures that cannot be built without memory
for their weights, or whose class count no tensor shows, are left out and listed.
"""

from __future__ import annotations

from pathlib import Path

from gatecli.architectures.shapes import open_shapes
from gatecli.architectures.timm_table import FILE, make_timm_row, pack
from gatecli.errors import GatecliError, reason

__all__ = ["main"]

TABLE = Path(__file__).with_name(FILE)


def main() -> None:
    """Write the table beside this file."""
    import timm

    rows = []
    left_out = []
    for name in timm.list_models():
        try:
            rows.append(make_timm_row(name, open_shapes(f"timm:{name}", {})[1]))
        except GatecliError as error:
            left_out.append(f"{name}: {reason(error, 160)}")
    data = pack(rows)
    TABLE.write_bytes(data)
    print("\n".join(left_out))
    print(f"{TABLE}: timm {timm.__version__}, {len(rows)} rows, {len(data)} bytes")


if __name__ == "__main__":
    main()
