"""Which model repositories are URLs, and whether anything here can read them."""

from __future__ import annotations

from urllib.parse import urlsplit

from headrace.errors import FailedPreconditionError
from server.extras import how_to_install


def is_url(repository: str) -> bool:
    """Return whether a repository lies elsewhere."""
    return "://" in repository


def check_url(url: str) -> None:
    """Raise FailedPreconditionError when nothing here can read `url`, or it holds a password: it
    would be an argument of every worker, for everybody on the machine to read."""
    if urlsplit(url).password is not None:
        raise FailedPreconditionError(
            "the URL holds a password",
            where="--model-repository",
            mend="give it by the environment, or the library's own file",
        )
    scheme = urlsplit(url).scheme
    try:
        import fsspec

        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError):
        known = scheme in {"s3", "s3a"}
        mend = how_to_install("s3") if known else f"install fsspec's library for {scheme}://"
        raise FailedPreconditionError(
            f"no library reads {scheme}:// here", where="--model-repository", mend=mend
        ) from None
