"""Where a network runs: PyTorch itself, its compiler, ONNX Runtime, OpenVINO; one file each.

A speed-up holds in the runtime in which it was measured, and in no other: what is cut for good
carries over, what is decided at run time may not.
"""
