"""What answers: wire, protocols, models, execution, processes, control and the command line."""

import os

# onnxruntime's Linux wheels report home unless told otherwise, and a server of someone's data must
# not. Here, because nothing below this package can import onnxruntime without passing this line.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
