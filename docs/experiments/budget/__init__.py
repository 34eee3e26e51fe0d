"""The comparison laboratory: one budget, and what each way of meeting it costs in accuracy.

    PYTHONPATH=docs/experiments:tests python -m budget --data glyphs36.npz

`parts` says which networks and which ways, a part a network; `ways` trains one; the runs are made
by the claims' laboratory, into a file of JSON lines; `page` writes docs/budget.md from those lines.
"""
