"""Predictions in the caller's own process: a bundle, a snapshot of features, no server, no store.

    from server.embedded import Predictor

    with Predictor("bundle", snapshot="features.snapshot") as risk:
        answer = risk.predict({"customer_id": [7, 8], "basket_cents": [1500, 10]})

It is the server's own way of a request (`server.predict`) under a release plan of one arm: the same
verified bundle, the same windows, the same session and the same decision layer, so that its answers
are the server's to the last bit. What it leaves out is what needs others: the wire, the split, the
log, the store. No prediction is logged, and none has an id that truth could be sent for.
"""

from server.embedded.predictor import Answer, Predictor

__all__ = ["Answer", "Predictor"]
