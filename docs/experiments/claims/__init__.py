"""The claims laboratory: each claim of the papers, measured on one small problem to convergence.

    PYTHONPATH=docs/experiments python -m claims --data glyphs36.npz

`papers` says what is claimed and what is trained for it, a file a paper; `laboratory` trains what
is missing, run by run, into a file of JSON lines; `page` writes docs/claims.md from those lines.
"""
