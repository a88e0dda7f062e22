"""HTTP/2 (RFC 9113) without IO: bytes in, requests and bytes out."""
