"""`headrace access`: what an access file is made of."""

from __future__ import annotations

from server.cli.common import make_app, say

app = make_app("API keys for an access file (docs/access.md).")


@app.command("new-key", epilog="Example: headrace access new-key")
def new_key() -> None:
    """Make a key. It is shown once: the server keeps a digest of it, and so does nobody else."""
    import secrets

    from server.access import keys

    key, stored = keys.new_key(secrets.token_bytes)
    say(f"key (for the client; it is not shown again): {key}")
    say(f"digest (for keys = […] of the access file): {stored}")
