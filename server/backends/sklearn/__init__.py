"""Files of scikit-learn that are data and no programs, made into ONNX when they are loaded."""
