"""Models that are one tree ensemble, evaluated by compiled code in onnxruntime's place."""
