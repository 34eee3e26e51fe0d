"""Kinds of sites say WHERE a decision stands; methods say WHAT decides (gatecli.methods)."""
