"""From a folder of Triton's layout to model versions that are ready, beside those that serve.

NAME/config.pbtxt (optional) and NAME/<number>/model.onnx. Nothing here is seen by a request: what
was loaded is warmed up before anybody can ask for it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from headrace.errors import FailedPreconditionError, HeadraceError, InternalError
from server.backends.contract import Backend, Host
from server.backends.lookup import backend_name, file_of, find_backend
from server.execution.device_session import open_session
from server.execution.devices import Placement
from server.execution.engine import CallingEngine
from server.execution.session import Session
from server.execution.statistics import Statistics
from server.models.budget import MemoryBudget
from server.models.calibrated import Graph, graph_of
from server.models.explanations import explanations_of
from server.models.golden import GOLDEN, check_golden, check_golden_rows, read_golden_file
from server.models.integrity import VersionFiles, check_files, check_folder, check_listed
from server.models.labels import read_labels
from server.models.loaded import CalledModel, LoadedModel, ServedModel
from server.models.pbtxt import (
    ModelConfig,
    check_supported,
    chosen_versions,
    parse_config,
    read_config,
)
from server.models.signatures import signatures
from server.models.warmup import run_samples
from trainer.bundle import MANIFEST, MODEL, read_bundle

CONFIG_FILE = "config.pbtxt"
_NAME_BYTES_MAX = 255
# A version is an int64 everywhere: what has more digits is none.
VERSION_DIGITS_MAX = 18
_FILES_MAX = 64
_FILE_BYTES_MAX = 1 << 30
_CONFIG_CHARACTERS_MAX = 128 * 1024
# Where nothing is: of files that came with a request none lies in a folder.
_NOWHERE = Path(os.devnull, "nowhere")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a request to load says instead of the folder.

    `config` is a ModelConfig as JSON. `files` are the contents of a version's files, by
    VERSION/NAME; with them the folder itself is not looked at.
    """

    config: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loading:
    """What came of it: versions that are ready, and why the others are not (0: none of them)."""

    versions: dict[int, ServedModel]
    failures: dict[int, HeadraceError]


def is_model_name(name: str) -> bool:
    """Return whether a folder of the repository may have this name."""
    return (
        bool(name)
        and not name.startswith(".")
        and not {"/", "\\", "\0"} & set(name)
        and len(os.fsencode(name)) <= _NAME_BYTES_MAX
    )


def model_folders(root: Path) -> list[Path]:
    """Return the folders of a repository that are of models."""
    return [entry for entry in root.iterdir() if entry.is_dir() and is_model_name(entry.name)]


def not_polled(name: str, why: str = "") -> InternalError:
    """Return the error, in Triton's words, of a model that the repository does not have so."""
    reason = f": {why}" if why else ""
    return InternalError(
        f"failed to load '{name[:256]}', failed to poll from model repository{reason}"
    )


def load_model(
    folder: Path,
    overrides: Overrides | None,
    host: Host,
    budget: MemoryBudget,
    chosen: Callable[[list[int]], None],
) -> Loading:
    """Load the versions of a model that its policy chooses; tell which. Blocks; raises nothing."""
    try:
        source = _Folder(folder) if overrides is None else _overridden(folder, overrides)
        config = source.config
        if config is not None:
            check_supported(config, folder.name)
        numbers = _chosen(source.numbers(), config)
    except HeadraceError as error:
        return Loading({}, {0: error})
    except OSError as error:
        return Loading({}, {0: _fault("the folder cannot be read", error)})
    except Exception as error:  # noqa: BLE001 - one model's fault stays its own
        return Loading({}, {0: _fault("the model cannot be read", error)})
    chosen(numbers)
    loading = Loading({}, {})
    for number in numbers:
        try:
            loading.versions[number] = _load_version(source, number, config, host, budget)
        except HeadraceError as error:
            loading.failures[number] = error
        except Exception as error:  # noqa: BLE001 - as above
            loading.failures[number] = _fault("the model cannot be loaded", error)
    return loading


def _fault(what: str, error: Exception) -> FailedPreconditionError:
    """Return a reason that clients may see; its cause is for the log."""
    reason = FailedPreconditionError(
        what, got=type(error).__name__, mend="the server's log has the cause"
    )
    reason.__cause__ = error
    return reason


class _Folder:
    """A model as it lies in the repository."""

    def __init__(self, folder: Path, config: ModelConfig | None = None) -> None:
        self.name = folder.name
        self.folder = folder
        self.config = config
        self._calibrated: dict[int, Graph] = {}
        if config is None and (folder / CONFIG_FILE).is_file():
            self.config = read_config(folder / CONFIG_FILE)

    def numbers(self) -> list[int]:
        """Return the versions that lie there."""
        return [
            int(entry.name)
            for entry in self.folder.iterdir()
            if entry.is_dir() and _is_version(entry.name)
        ]

    def has(self, number: int, filename: str) -> bool:
        """Return whether a version has a file of this name."""
        return (self.folder / str(number) / filename).is_file()

    def path(self, number: int, filename: str) -> Path:
        """Return where a version's file lies."""
        if "/" in filename or not self.has(number, filename):
            raise FailedPreconditionError(f"{number}/{filename} is not there")
        return self.folder / str(number) / filename

    def check(self, number: int, filename: str) -> VersionFiles:
        """Return what a load of one version reads, after a look at whether it is whole."""
        return check_folder(self.path(number, filename).parent, filename)

    def check_listed(self, number: int, filename: str) -> None:
        """Raise FailedPreconditionError for bytes that are not those listed beside them."""
        check_listed(self.path(number, filename).parent, filename)

    def beside(self, folder: str, filename: str) -> bytes:
        """Return a file of a folder beside the versions."""
        file = self.folder / folder / filename
        if not _FILE_NAME.fullmatch(filename) or not file.is_file():
            raise FailedPreconditionError(f"{folder}/{filename[:64]} is not there")
        if file.stat().st_size > _FILE_BYTES_MAX:
            raise FailedPreconditionError(
                f"{folder}/{filename} is too large", expected=f"at most {_FILE_BYTES_MAX} bytes"
            )
        return file.read_bytes()

    def session(
        self, number: int, filename: str, threads: int, placement: Placement | None = None
    ) -> Session:
        """Return the session of one version's file."""
        folder = self.folder / str(number)
        if filename != MODEL or not (folder / MANIFEST).is_file():
            return open_session(folder / filename, folder, threads, placement)
        bundle = read_bundle(folder)
        session = open_session(bundle.read(MODEL), folder, threads, placement)
        graph = graph_of(bundle, session)
        check_golden_rows(bundle, graph)
        if graph is not session:
            self._calibrated[number] = graph
        return session

    def calibrated(self, number: int) -> Graph | None:
        """Return what answers in its session's place, of a bundle with a calibrator."""
        return self._calibrated.get(number)

    def golden(self, number: int) -> bytes | None:
        """Return the golden input of one version, where it has one."""
        return read_golden_file(self.folder / str(number))

    def file(self, number: int, filename: str) -> Path:
        """Return one version's file."""
        return self.folder / str(number) / filename


class _Files:
    """A model whose files came with the request."""

    def __init__(self, folder: Path, files: Mapping[str, bytes], config: ModelConfig) -> None:
        self.name = folder.name
        self.config: ModelConfig | None = config
        self.folder = _NOWHERE
        self._files = {_version_file(path): data for path, data in files.items()}

    def numbers(self) -> list[int]:
        """Return the versions that have a file."""
        return sorted({number for number, _ in self._files})

    def has(self, number: int, filename: str) -> bool:
        """Return whether a file of this name came for a version."""
        return (number, filename) in self._files

    def path(self, number: int, filename: str) -> Path:
        """Refuse: nothing that came with a request is ever executed, or written anywhere."""
        raise FailedPreconditionError(
            f"{number}/{filename} cannot come with a request",
            mend="put the model into the repository's folder",
        )

    def check(self, number: int, filename: str) -> VersionFiles:
        """Return what a load of one version reads, after a look at whether it is whole."""
        files = {name: data for (of, name), data in self._files.items() if of == number}
        if filename not in files:
            raise FailedPreconditionError(f"no file '{number}/{filename}' came with the request")
        return check_files(files, filename)

    def check_listed(self, number: int, filename: str) -> None:
        """Refuse, as `path` does."""
        self.path(number, filename)

    def beside(self, folder: str, filename: str) -> bytes:
        """Refuse: a request brings the files of versions only."""
        raise FailedPreconditionError(
            f"{folder}/{filename[:64]} cannot come with a request",
            mend="put the model into the repository's folder",
        )

    def session(
        self, number: int, filename: str, threads: int, placement: Placement | None = None
    ) -> Session:
        """Return the session of one version's file; external tensors there are none."""
        return open_session(self._files[number, filename], self.folder, threads, placement)

    def calibrated(self, number: int) -> Graph | None:
        """Return None: no bundle comes with a request."""
        return None

    def golden(self, number: int) -> bytes | None:
        """Return the golden input of one version, where it has one."""
        return self._files.get((number, GOLDEN))

    def file(self, number: int, filename: str) -> bytes:
        """Return one version's file."""
        return self._files[number, filename]


def _overridden(folder: Path, overrides: Overrides) -> _Folder | _Files:
    check_overrides(overrides)
    config = None if overrides.config is None else parse_config(overrides.config)
    if not overrides.files:
        return _Folder(folder, config)
    if config is None:
        raise FailedPreconditionError(
            "files came without a configuration", mend="give the parameter 'config', too"
        )
    return _Files(folder, overrides.files, config)


def check_overrides(overrides: Overrides) -> None:
    """Raise FailedPreconditionError for overrides that are wrong before anything is loaded."""
    if overrides.config is not None and len(overrides.config) > _CONFIG_CHARACTERS_MAX:
        raise FailedPreconditionError(
            "Invalid config override: it is too long",
            expected=f"at most {_CONFIG_CHARACTERS_MAX} characters",
        )
    if len(overrides.files) > _FILES_MAX:
        raise FailedPreconditionError("too many files", expected=f"at most {_FILES_MAX}")
    for path in overrides.files:
        _version_file(path)


def _version_file(path: str) -> tuple[int, str]:
    """Return version and name of a file that came with a request: VERSION/NAME."""
    parts = PurePosixPath(path).parts
    if len(parts) == 2 and _is_version(parts[0]) and _FILE_NAME.fullmatch(parts[1]):
        return int(parts[0]), parts[1]
    raise FailedPreconditionError(
        "a file of the request is named wrongly", expected="file:VERSION/NAME", got=path[:64]
    )


def _is_version(name: str) -> bool:
    return (
        name.isascii()
        and name.isdecimal()
        and not name.startswith("0")
        and len(name) <= VERSION_DIGITS_MAX
    )


def _chosen(available: list[int], config: ModelConfig | None) -> list[int]:
    if config is not None:
        available = chosen_versions(config, available)
    elif available:
        available = [max(available)]
    if not available:
        raise FailedPreconditionError(
            "there is no version folder that the version policy takes",
            expected="a folder with a whole number as its name, such as 1/",
        )
    return available


def _load_version(
    source: _Folder | _Files,
    number: int,
    config: ModelConfig | None,
    host: Host,
    budget: MemoryBudget,
) -> ServedModel:
    start_ns = time.monotonic_ns()
    name = backend_name(source, number, config)
    backend = find_backend(name)
    filename = file_of(name, source, number, config, backend.default_filename)
    if "/" in filename:
        raise FailedPreconditionError(f"{number}/{filename} is not there")
    if not backend.graphs:
        if filename:
            source.check_listed(number, filename)
        model = _make(source, number, config, backend, host)
    else:
        files = source.check(number, filename)
        with budget.reserve(f"{source.name}/{number}", files) as growth:
            model = _make(source, number, config, backend, host)
        model.memory_bytes = growth.held_bytes
    model.load_ns = time.monotonic_ns() - start_ns
    return model


def _make(
    source: _Folder | _Files,
    number: int,
    config: ModelConfig | None,
    backend: Backend,
    host: Host,
) -> ServedModel:
    """Load one version, warm it up and look whether it answers what it should."""
    statistics = Statistics()
    full, engine, graph = backend.load(source, number, config, host, statistics)
    inputs = signatures(full.input, full.max_batch_size)
    outputs = signatures(full.output, full.max_batch_size)
    labels = read_labels(source.folder, full)
    calibrated = source.calibrated(number)
    model: ServedModel
    if isinstance(engine, CallingEngine):
        model = CalledModel(
            source.name, str(number), engine, full, inputs, outputs, statistics, host.loop, labels
        )
    else:
        answering = calibrated or engine
        model = LoadedModel(
            source.name, str(number), answering, full, inputs, outputs, host.executor, labels
        )
        if isinstance(engine, Session):
            file = graph or source.file(number, full.default_model_filename)
            model.explanations = explanations_of(model, calibrated or engine, file, host.executor)
        model.warm_up()
    try:
        if calibrated is not None and isinstance(engine, CallingEngine):
            raise FailedPreconditionError(
                "a calibrator is of models without sequences and ragged batches",
                where="config.pbtxt",
            )
        if full.model_warmup:
            run_samples(model, source.folder)
        golden = source.golden(number)
        if golden is not None:
            check_golden(model, golden)
    except BaseException:
        model.discard()
        raise
    return model
