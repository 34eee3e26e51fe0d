"""ONNX files, in which what is skipped stands in `If`."""
