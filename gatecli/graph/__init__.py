"""The traced network: finding sites on it, counting it, rewriting it, and lowering it to code that
skips.
"""
