"""Inference with trained and zero-shot models: prediction, ensembles, attention maps, ONNX export."""
