"""Trained and zero-shot models over whole recordings: prediction, ensembles, attention maps, ONNX export."""
