"""The python backend: Triton's TritonPythonModel, in a process of its own."""
