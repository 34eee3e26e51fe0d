"""The traced network.

Finding sites on it, counting it, rewriting it, and lowering it to code that skips.
"""
