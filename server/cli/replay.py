"""`headrace replay PREDICTION_ID`: the logged row through the logged version, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from headrace.ids import id_bytes, id_text
from headrace.times import format_us
from server.cli.common import ConfigOption, ControlUrl, DataDir, client, effective, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from server.config import Effective
    from trainer.bundle import Manifest

PredictionId = Annotated[str, typer.Argument(help="The id that came with the prediction (a UUID)")]
Read = Callable[[str], bytes]

_PARTS_SHOWN = 10
_FLAGS = ("shadow", "forced", "fallback", "retry", "cached", "explained")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: headrace replay 01970c6e-8f00-7000-8000-00017a3b5c2d --data-dir demo-data"
    )(replay)


def replay(
    prediction_id: PredictionId,
    data_dir: DataDir = None,
    control_url: ControlUrl = None,
    config: ConfigOption = None,
) -> None:
    """Run a logged prediction again, and compare the bits.

    Shows both results in bits, and why this arm answered. Exit code 1 when the bits differ.
    """
    from monitor.log import find_prediction

    try:
        wanted = id_bytes(prediction_id)
    except ValueError:
        raise InvalidArgumentError(
            "not a prediction id", expected="a UUID", got=repr(prediction_id)
        ) from None
    root = _data_folder(effective(config, {"data_dir": data_dir}))
    attempts = find_prediction(root / "log", wanted).to_pylist()
    if not attempts:
        raise NotFoundError(
            f"prediction {prediction_id} is not in the log",
            where=str(root / "log"),
            mend="check --data-dir; rows reach the log about a second after the reply",
        )
    read = _blob_reader(root, lambda digest: client(config, control_url).get_blob(digest))
    equal = [_replay_one(row, read) for row in attempts]
    if not all(equal):
        raise typer.Exit(1)


def _data_folder(found: Effective) -> Path:
    """Return the folder that has the log. Raises NotFoundError, which says who named it."""
    root = Path(found.settings.data_dir)
    if (root / "log").is_dir():
        return root
    (origin,) = (each.origin for each in found.origins if each.name == "data_dir")
    missing, hint = root, ""
    if root.is_dir():
        missing, hint = root / "log", "; it is made with the first prediction that is logged"
    raise NotFoundError(
        f"the folder {missing} does not exist",
        got=f"data_dir = {root} by {origin}",
        mend=f"name the server's data folder with --data-dir{hint}",
    )


def _blob_reader(root: Path, remote: Read) -> Read:
    """Return a reader of blobs by digest: from the data folder, else from control."""
    from trainer.registry import ArtifactStore

    store = ArtifactStore(root / "artifacts")

    def read(digest: str) -> bytes:
        return store.read(digest) if store.has(digest) else remote(digest)

    return read


def _replay_one(row: dict[str, Any], read: Read) -> bool:
    import numpy as np

    from trainer.bundle import parse_manifest

    logged = np.asarray(row["outputs"] or [], np.float32)
    say(f"prediction {id_text(row['prediction_id'])} attempt {row['attempt']}")
    say(f"  model       {row['model']}")
    say(f"  version     {row['version']}")
    say(f"  event time  {format_us(_us(row['event_time']))}")
    _say_why(row)
    if row["features"] is None:
        raise FailedPreconditionError(
            "this row was logged without its features",
            mend="only models with a feature service log what they got",
        )
    manifest = parse_manifest(read(row["version"]))
    digests = {file.path: file.sha256 for file in manifest.files}
    matrix = _features(row, manifest, read(digests["definitions.py"]))
    outputs = _infer(read(digests["model.onnx"]), manifest, matrix)
    decision = _decide(manifest, outputs, lambda path: read(digests[path]))
    again = np.asarray(outputs[0], np.float32).ravel()
    equal = logged.tobytes() == again.tobytes() and row["decision"] == decision
    say(f"  logged      {_bits(logged)}")
    say(f"  recomputed  {_bits(again)}")
    if manifest.decision is not None:
        say(f"  decided     {row['decision'] or 'nothing'}, recomputed {decision or 'nothing'}")
    say(f"  {'equal' if equal else 'DIFFERENT'}, bit for bit")
    if row["attributions"]:
        _say_attributions(row, manifest)
    return equal


def _say_attributions(row: dict[str, Any], manifest: Manifest) -> None:
    import numpy as np

    assert manifest.feature_service is not None  # its features were unpacked
    names, base = manifest.feature_service.columns, row["attribution_base"]
    scores = np.array(row["attributions"], np.float64).reshape(-1, len(base)).T
    for number, (start, values) in enumerate(zip(base, scores.tolist(), strict=True)):
        parts = sorted(zip(values, names, strict=True), key=lambda part: -abs(part[0]))
        of = f" of score {number}" if len(base) > 1 else ""
        say(f"  explained{of}: from {start:+.6g} by")
        for value, name in parts[:_PARTS_SHOWN]:
            say(f"    {value:+12.6f}  {name}")
        if rest := parts[_PARTS_SHOWN:]:
            say(f"    {sum(value for value, _ in rest):+12.6f}  {len(rest)} others")


def _say_why(row: dict[str, Any]) -> None:
    if row["plan"] is None:
        say("  arm         none: the model was under no plan")
        return
    names = [name for bit, name in enumerate(_FLAGS) if row["flags"] >> bit & 1]
    pmf = ", ".join(f"{p:.6g}" for p in row["pmf"]) if row["pmf"] is not None else "one arm only"
    say(f"  arm         {row['arm']}, under plan {row['plan']}, policy {row['policy']}")
    say(f"  why         key hash {row['key_hash'] or 0:016x} drew it with propensity")
    say(f"              {row['propensity']!r} out of ({pmf})")
    if names:
        say(f"  flags       {', '.join(names)}")


def _features(row: dict[str, Any], manifest: Manifest, source: bytes) -> NDArray[np.float32]:
    from features import FeatureBatch, definitions_from_source

    if manifest.feature_service is None:
        raise FailedPreconditionError(
            "the version has no feature service, but features were logged"
        )
    service = definitions_from_source(source).service(manifest.feature_service.name)
    return FeatureBatch.unpack(service, [row["features"]], row["schema_id"] or 0).matrix()


def _infer(model: bytes, manifest: Manifest, matrix: NDArray[np.float32]) -> list[NDArray[Any]]:
    # Its Linux wheels report home otherwise.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    signature = manifest.signature
    names = [spec.name for spec in signature.outputs]
    return list(session.run(names, {signature.inputs[0].name: matrix}))


def _decide(manifest: Manifest, outputs: list[NDArray[Any]], read: Read) -> str | None:
    """Calibrate in place the output that decides, and return what the decision layer says of it."""
    from trainer.calibrators import calibrate, read_calibrator
    from trainer.decisions import decide

    decision = manifest.decision
    if decision is None:
        return None
    place = decision.output_index
    if decision.calibrator is not None:
        calibrator = read_calibrator(read(decision.calibrator))
        outputs[place] = calibrate(calibrator, outputs[place])
    return decide(decision, outputs[place].reshape(1, -1))[0] or None


def _bits(values: NDArray[np.float32]) -> str:
    return " ".join(f"{value!s} (0x{value.view('uint32'):08x})" for value in values)


def _us(when: Any) -> int:
    from headrace.times import to_us

    return to_us(when)
