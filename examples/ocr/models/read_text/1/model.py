"""Text of a picture: detect, cut out, turn what is upside down, recognise."""

import asyncio
from pathlib import Path

import boxes
import numpy as np
import pictures
import triton_python_backend_utils as pb_utils

BATCH_MAX = 16  # as in the configurations of `classify` and `recognise`
HEIGHT = 48  # of a crop, as both graphs want it
CLASSIFIED_WIDTH = 192
RECOGNISED_WIDTH_MIN = 320
TURN_ABOVE = 0.9  # how sure the classifier is that a crop is upside down
SCORE_MIN = 0.5  # of a text that is answered
# What the graphs call their tensors.
INPUT = "x"
OUTPUTS = {
    "detect": "sigmoid_0.tmp_0",
    "classify": "save_infer_model/scale_0.tmp_1",
    "recognise": "softmax_11.tmp_0",
}


class TritonPythonModel:
    """`picture` (height, width, 3; BGR) to the texts in it, as they are read, with their boxes."""

    def initialize(self, args):
        """Read what the columns of the recogniser's output mean."""
        letters = Path(__file__).with_name("letters.txt").read_text(encoding="utf-8")
        self.letters = ["", *letters.splitlines(), " "]  # first of all the blank between letters

    async def execute(self, requests):
        """Answer all that came together, beside each other."""
        return await asyncio.gather(*(self.answer(request) for request in requests))

    async def answer(self, request):
        """Return the response to one request. What cannot be read costs no other request."""
        picture = pb_utils.get_input_tensor_by_name(request, "picture").as_numpy()
        try:
            return response(*await self.read(picture))
        except Refused as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(*error.args))

    async def read(self, picture):
        """Return the texts of a picture, their scores and their boxes."""
        if 0 in picture.shape:
            raise Refused("the picture has no pixels", pb_utils.TritonError.INVALID_ARG)
        resized = pictures.resize(picture, *pictures.detected_size(*picture.shape[:2]))
        chances = await ask("detect", pictures.normalised(resized)[None])
        found = boxes.find(chances[0, 0], picture.shape[:2])
        if not found:
            return [], [], []  # nothing to recognise: the other two models are not asked
        crops = [pictures.crop(picture, box, HEIGHT) for box in found]
        crops = await upright(crops)
        return kept(await self.recognise(crops), found)

    async def recognise(self, crops):
        """Return text and score of each crop. Those of like width go together."""
        order = sorted(range(len(crops)), key=lambda at: crops[at].shape[1])
        batches = [order[at : at + BATCH_MAX] for at in range(0, len(order), BATCH_MAX)]
        answers = await asyncio.gather(
            *(ask("recognise", padded([crops[at] for at in batch])) for batch in batches)
        )
        read = {
            at: self.text_of(row)
            for batch, rows in zip(batches, answers, strict=True)
            for at, row in zip(batch, rows, strict=True)
        }
        return [read[at] for at in range(len(crops))]

    def text_of(self, chances):
        """Return the text and the mean of its letters' chances (CTC: places, letters)."""
        best = chances.argmax(axis=1)
        first = np.append(True, best[1:] != best[:-1]) & (best != 0)
        if not first.any():
            return "", 0.0
        return "".join(self.letters[at] for at in best[first]), chances.max(axis=1)[first].mean()


class Refused(Exception):  # noqa: N818 - a refusal, to the caller
    """What a request is answered instead: message and code."""


async def ask(model, array):
    """Return the output of one of the graphs."""
    wanted = OUTPUTS[model]
    request = pb_utils.InferenceRequest(
        model_name=model,
        inputs=[pb_utils.Tensor(INPUT, array)],
        requested_output_names=[wanted],
    )
    answer = await request.async_exec()
    if answer.has_error():
        raise Refused(answer.error().message(), answer.error().code())
    return pb_utils.get_output_tensor_by_name(answer, wanted).as_numpy()


async def upright(crops):
    """Turn the crops that are upside down. All batches are asked at once."""
    rows = np.stack([pictures.fit(crop, HEIGHT, CLASSIFIED_WIDTH) for crop in crops])
    parts = [rows[at : at + BATCH_MAX] for at in range(0, len(rows), BATCH_MAX)]
    chances = np.concatenate(await asyncio.gather(*(ask("classify", part) for part in parts)))
    return [
        crop[::-1, ::-1] if turned > TURN_ABOVE else crop
        for crop, (_, turned) in zip(crops, chances, strict=True)
    ]


def padded(crops):
    """Return one batch, as wide as its widest crop. Multiples of 32 often meet other pictures'."""
    width = max(RECOGNISED_WIDTH_MIN, *(crop.shape[1] for crop in crops))
    width = -(-width // 32) * 32
    return np.stack([pictures.fit(crop, HEIGHT, width) for crop in crops])


def kept(read, found):
    rows = [(*text, box) for text, box in zip(read, found, strict=True) if text[1] >= SCORE_MIN]
    return tuple(zip(*rows, strict=True)) or ([], [], [])


def response(texts, scores, found):
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("text", np.array(texts, object)),
            pb_utils.Tensor("score", np.array(scores, np.float32)),
            pb_utils.Tensor("box", np.array(found, np.float32).reshape(-1, 4, 2)),
        ]
    )
