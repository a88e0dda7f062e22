"""Execution: one onnxruntime session a model version, and the batches that it runs."""
