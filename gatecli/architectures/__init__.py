"""Architectures: what a checkpoint's network is, and how to build it."""
