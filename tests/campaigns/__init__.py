"""Long trials of gatecli: damaged files, killed commands, and the promise of `--confidence`.

`make campaign` runs them; `python -m campaigns --help` says what can be chosen.
"""
