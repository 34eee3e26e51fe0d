"""Weights in a safetensors file, with Python source that needs torch alone."""
