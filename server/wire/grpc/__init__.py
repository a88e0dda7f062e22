"""gRPC over HTTP/2: message framing, metadata, statuses and compression, then calls on streams."""
