"""Inference on whole recordings: prediction, ensembles, attention maps, ONNX export."""
