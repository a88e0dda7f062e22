"""Make the model repository: `python build.py FOLDER`.

The graphs are those of the distribution `rapidocr-onnxruntime`, as they are. Nothing of it is
imported.
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import onnxruntime

GRAPHS = {
    "detect": "ch_PP-OCRv4_det_infer.onnx",
    "classify": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "recognise": "ch_PP-OCRv4_rec_infer.onnx",
}


def build(folder: Path) -> None:
    """Write the repository; `folder` must not be there."""
    spec = find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        raise SystemExit("no graphs: pip install --no-deps rapidocr-onnxruntime")
    shutil.copytree(Path(__file__).parent / "models", folder)
    for model, name in GRAPHS.items():
        target = folder / model / "1" / "model.onnx"
        target.parent.mkdir()
        shutil.copyfile(Path(spec.origin).parent / "models" / name, target)
    # What the columns of its output mean, the recogniser says in its metadata.
    session = onnxruntime.InferenceSession(
        folder / "recognise" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    letters = session.get_modelmeta().custom_metadata_map["character"]
    (folder / "read_text" / "1" / "letters.txt").write_text(letters, encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
