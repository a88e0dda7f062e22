"""One version of a released model, loaded from its bundle and checked before it may answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from features import (
    CompiledService,
    Definitions,
    FeatureView,
    StreamFeatureView,
    definitions_from_source,
)
from headrace.digest import digest_file
from headrace.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from server.control.client import ControlClient
from server.execution.session import Session
from server.execution.threads import RunThreads
from server.models.budget import MemoryBudget, share_of_machine
from server.models.calibrated import graph_of
from server.models.explanations import explanations_of
from server.models.golden import check_golden_rows
from server.models.graphs import graph_tensors
from server.models.integrity import check_folder
from server.models.loaded import LoadedModel, TensorSignature
from trainer.bundle import (
    DEFINITIONS,
    MANIFEST,
    MODEL,
    Bundle,
    FeatureServiceRef,
    Manifest,
    TensorSpec,
    read_bundle,
)
from trainer.decisions import check_output, decide

_LOG = logging.getLogger(__name__)
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Version:
    """A loaded version. `service` None: its inputs come with the request."""

    digest: str
    manifest: Manifest
    model: LoadedModel
    service: CompiledService | None
    schema_id: int  # of the feature service; 0 where the registry issued none
    definitions: Definitions | None  # those that the service comes from

    @property
    def service_label(self) -> str | None:
        """What the log's `service` column says: name@hash."""
        return None if self.service is None else f"{self.service.name}@{self.service.hash}"

    @property
    def deciding(self) -> int:
        """The place of the output that decides, in the signature's order."""
        decision = self.manifest.decision
        return 0 if decision is None else decision.output_index

    def decide(self, output: Array) -> list[str]:
        """Return what the decision layer says of the output that decides [rows, width]; none
        without."""
        decision = self.manifest.decision
        return [] if decision is None else decide(decision, output)


class BundleSource:
    """Where bundles come from: control (kept in a cache by digest), or a folder of bundles."""

    def __init__(self, url: str, cache: Path) -> None:
        """`url` is `http(s)://…` of control or `file://…`. Raises InvalidArgumentError."""
        self._folder: Path | None = None
        self._client: ControlClient | None = None
        if url.startswith("file://"):
            self._folder = Path(url.removeprefix("file://"))
        elif url.startswith(("http://", "https://")):
            # The registry's package brings SQLAlchemy: only a worker with a control pays for it.
            from trainer.registry.artifacts import ArtifactStore

            self._client = ControlClient(url)
            self._artifacts = ArtifactStore(cache)
            self._bundles = cache / "bundles"
        else:
            raise InvalidArgumentError(
                "bad registry URL", expected="http(s)://… of control, or file://…", got=repr(url)
            )

    def get(self, digest: str) -> Bundle:
        """Return the verified bundle. Blocks: call it in a thread.

        Raises NotFoundError, UnavailableError (control is gone and the cache lacks a part), and
        FailedPreconditionError for bytes that are not what the digest says.
        """
        if self._folder is not None:
            return read_bundle(self._in_folder(digest), digest)
        assert self._client is not None
        for _ in range(2):  # first the manifest, then what it lists
            for missing in self._artifacts.missing(digest):
                self._artifacts.put_bytes(self._client.get_blob(missing), missing)
        folder = self._bundles / digest.removeprefix("sha256:")
        try:
            return self._artifacts.materialise(digest, folder)
        except AlreadyExistsError:  # another worker was faster
            return read_bundle(folder, digest)

    def _in_folder(self, digest: str) -> Path:
        assert self._folder is not None
        for manifest in sorted(self._folder.glob(f"*/{MANIFEST}")):
            if digest_file(manifest) == digest:
                return manifest.parent
        raise NotFoundError(f"no bundle {digest} in the registry's folder")


class Bundles(Protocol):
    """Where bundles come from."""

    def get(self, digest: str) -> Bundle:
        """Return the verified bundle of a digest."""


def configured(name: str, session: Session) -> Any:
    """Return the ModelConfig of a bundle's graph: clients ask for it."""
    # Its messages bring gRPC, which who serves no client does not need.
    from server.models.pbtxt import complete_config

    return complete_config(None, name, session)


class VersionLoader:
    """Loads versions; definitions of equal content are loaded once. Safe to call from threads."""

    def __init__(
        self,
        source: Bundles,
        executor: RunThreads,
        budget: MemoryBudget | None = None,
        configure: Callable[[str, Session], Any] = configured,
    ) -> None:
        self._source = source
        self._configure = configure
        self._executor = executor
        self._budget = budget or MemoryBudget(share_of_machine(1))
        self._definitions: dict[str, Definitions] = {}
        self._lock = threading.Lock()

    def load(self, name: str, digest: str) -> Version:
        """Return the version, after its golden rows gave what they gave when it was made.

        Raises FailedPreconditionError, ResourceExhaustedError without the memory for it, and what
        `BundleSource.get` raises.
        """
        start_ns = time.monotonic_ns()
        bundle = self._source.get(digest)
        manifest = bundle.manifest
        if manifest.name != name:
            raise FailedPreconditionError(
                "the bundle is of another model", where=digest, expected=name, got=manifest.name
            )
        with self._budget.reserve(name, check_folder(bundle.folder, MODEL)) as growth:
            model = self._make(name, digest, bundle)
        model.memory_bytes = growth.held_bytes
        model.load_ns = time.monotonic_ns() - start_ns
        wanted = manifest.feature_service
        if wanted is None:
            return Version(digest, manifest, model, None, 0, None)
        definitions = self._load_definitions(bundle)
        service = service_of(bundle, wanted, definitions)
        _warm_up_features(service)
        return Version(digest, manifest, model, service, wanted.schema_id or 0, definitions)

    def _make(self, name: str, digest: str, bundle: Bundle) -> LoadedModel:
        manifest = bundle.manifest
        file = bundle.read(MODEL)
        session = Session(file, bundle.folder)
        config = self._configure(name, session)
        inputs = _signatures(session.inputs, "input")
        outputs = _signatures(session.outputs, "output")
        _check_signature(manifest.signature.inputs, inputs, "input", digest)
        _check_signature(manifest.signature.outputs, outputs, "output", digest)
        order = {spec.name: place for place, spec in enumerate(manifest.signature.outputs)}
        outputs = sorted(outputs, key=lambda spec: order[spec.name])
        graph = graph_of(bundle, session)
        background, answers = check_golden_rows(bundle, graph)
        model = LoadedModel(name, digest, graph, config, inputs, outputs, self._executor)
        if manifest.decision is not None:
            deciding = manifest.signature.outputs[manifest.decision.output_index].name
            check_output(manifest.decision, answers[graph.output_names.index(deciding)])
        model.explanations = explanations_of(model, graph, file, self._executor, background)
        model.warm_up()
        return model

    def _load_definitions(self, bundle: Bundle) -> Definitions:
        source = bundle.read(DEFINITIONS)
        with self._lock:  # loading a definitions file touches sys.modules
            definitions = definitions_from_source(source)
            return self._definitions.setdefault(definitions.digest, definitions)


def service_of(
    bundle: Bundle, wanted: FeatureServiceRef, definitions: Definitions
) -> CompiledService:
    """Return the service that a bundle's manifest names, as the bundle's definitions have it.

    Raises NotFoundError, and FailedPreconditionError when it is not what the model was trained on.
    """
    service = definitions.service(wanted.name)
    if service.hash != wanted.hash or service.columns != wanted.columns:
        raise FailedPreconditionError(
            f"feature service '{wanted.name}' of the bundle's definitions is not the one that the "
            "model was trained on",
            where=bundle.digest,
            expected=wanted.hash,
            got=service.hash,
        )
    return service


def _signatures(nodes: Sequence[Any], kind: str) -> list[TensorSignature]:
    return [
        TensorSignature(name, tensor.datatype, tuple(tensor.dims))
        for name, tensor in graph_tensors(nodes, kind).items()
    ]


def _warm_up_features(service: CompiledService) -> None:
    """Compile (or load) what reads the service's rows, which all views of a kind share."""
    if any(isinstance(entry.view, FeatureView) for entry in service.views):
        import features.last_known  # noqa: F401 - compiled where it is imported
    for entry in service.views:
        if isinstance(entry.view, StreamFeatureView):
            # Its compiled code is loaded where there are windows.
            from features.windows.engine import WindowEngine

            WindowEngine(entry.view).warm_up_query()
            return  # all views share the compiled code


def _check_signature(
    wanted: list[TensorSpec], found: list[TensorSignature], kind: str, digest: str
) -> None:
    by_name = {spec.name: spec for spec in found}
    for spec in wanted:
        graph = by_name.get(spec.name)
        if graph is None or graph.datatype != spec.dtype or not _fits(spec.shape, graph.shape):
            raise FailedPreconditionError(
                f"{kind} '{spec.name}' of the signature is not what the graph has",
                where=digest,
                expected=f"{spec.dtype} {spec.shape}",
                got="none" if graph is None else f"{graph.datatype} {list(graph.shape)}",
            )
    if len(wanted) != len(found):
        extra = sorted(set(by_name) - {spec.name for spec in wanted})
        raise FailedPreconditionError(
            f"the graph has {kind}s that the signature does not name", where=digest, got=extra
        )


def _fits(wanted: list[int], graph: tuple[int, ...]) -> bool:
    return len(wanted) == len(graph) and all(
        -1 in (want, size) or want == size for want, size in zip(wanted, graph, strict=True)
    )
