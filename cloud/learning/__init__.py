"""Heads from statistics, ONNX export, gates, and the training run that ties them together."""
