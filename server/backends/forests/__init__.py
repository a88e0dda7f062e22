"""Files of boosted trees as their trainers write them, made into ONNX when they are loaded."""
