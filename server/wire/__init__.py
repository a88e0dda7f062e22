"""Transports: bytes in, bytes out. They know no protocol above HTTP and gRPC framing."""
