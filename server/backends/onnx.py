"""The onnxruntime backend: a version is one ONNX graph."""

from __future__ import annotations

from server.backends.contract import Host, Made, ModelConfig, VersionFiles
from server.execution.instances import instances_of
from server.execution.statistics import Statistics
from server.models.pbtxt import check_plain, complete_config


class OnnxBackend:
    """Loads `model.onnx`."""

    default_filename = "model.onnx"
    graphs = True

    def load(
        self,
        files: VersionFiles,
        number: int,
        config: ModelConfig | None,
        host: Host,
        statistics: Statistics,
    ) -> Made:
        """Return the graph's session. Raises FailedPreconditionError."""
        if config is not None:
            check_plain(config)
        given = "" if config is None else config.default_model_filename
        threads = 1 if config is None else instances_of(config, host.executor.cores).threads
        session = files.session(number, given or self.default_filename, threads)
        return Made(complete_config(config, files.name, session), session)
