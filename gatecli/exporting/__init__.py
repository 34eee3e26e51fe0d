"""Networks in files for machines without gatecli.

The package is not called `export`, as `gatecli.export` is the function: Python binds a package's
name in its parent when it is first imported, which would hide the function from then on.
"""
