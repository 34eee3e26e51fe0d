"""Exits of an ONNX graph: nothing behind the one that is taken is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gatecli.exporting.marks import Leave
from gatecli.exporting.onnx.if_branches import Otherwise, Surgeon
from gatecli.exporting.onnx.nodes import constant

__all__ = ["leave_early"]


def leave_early(surgeon: Surgeon, leaves: Sequence[Leave], outputs: Sequence[str]) -> None:
    """Put an `If` at each exit, the last first, as they lie within each other.

    Args:
        surgeon: edits the graph.
        leaves: the exits in order.
        outputs: what the graph returns: "logits", perhaps decisions, and "exit".
    """
    decisions = [name for name in outputs if name not in ("logits", "exit")]
    for number, leave in reversed(list(enumerate(leaves))):
        behind = surgeon.behind(decisions, "logits", [leave.decision, leave.logits])
        if "exit" in outputs:
            behind.append("exit")
        surgeon.compute_only_if(
            leave.decision,
            ["logits", *behind],
            _leaving(surgeon, number, leave, behind),
            keep=[leave.logits],
            negate=True,
        )


def _leaving(surgeon: Surgeon, number: int, leave: Leave, behind: Sequence[str]) -> Otherwise:
    """What stands for the results of a sample that leaves here.

    This exit's logits, its number, and zeros for gates that did not run.
    """
    from onnx import helper

    nodes = [helper.make_node("Identity", [leave.logits], [f"logits/leave{number}"])]
    for name in behind:
        value = torch.tensor([number]) if name == "exit" else torch.zeros(surgeon.shape_of(name))
        nodes.append(constant(f"{name}/leave{number}", value))
    return Otherwise(nodes=nodes, outputs=[node.output[0] for node in nodes])
