"""Repositories that lie elsewhere (S3, GCS, any URL that fsspec knows), mirrored to this machine.

A mirror is a folder in Triton's layout whose models are links into a store beside it. What changed
by its listing (etag, else time, and size) is fetched beside what is there, and a link is turned
when all of a model has come: nobody sees half of one, and a disk that is full leaves what was.

    models/NAME → ../store/<digest of NAME's listing>/
    store/<digest>/config.pbtxt, and 1 → ../<digest of its listing>/
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from headrace.digest import digest_bytes, digest_json
from headrace.errors import FailedPreconditionError, HeadraceError, UnavailableError
from server.config import mask_url
from server.models.loading import is_model_name
from server.models.urls import is_url
from server.processes.layout import is_full, replace_file

_LOG = logging.getLogger(__name__)
_ENTRIES_MAX = 100_000
_DEPTH_MAX = 8
# What no link names any more is kept so long: a worker may just be loading it.
_KEPT_S = 600.0
_ETAGS = ("etag", "ETag", "md5Hash", "content_md5", "contentHash", "crc32c", "generation")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")
_NOTHING = "nothing"  # what a model links to that has not been fetched yet

Listing = dict[str, str]  # path below a folder → tag


class Source(Protocol):
    """Keeps a folder like what lies elsewhere."""

    root: Path

    def start(self, names: Collection[str] | None) -> None:
        """Sync these models (None: all), or do with what an earlier start has fetched.

        Raises UnavailableError when there is neither.
        """

    def sync(self, names: Collection[str] | None, fresh_s: float = 0.0) -> None:
        """Fetch what changed of these models (None: all, unless that was within `fresh_s`).

        Raises UnavailableError when the source cannot be read, or a named model not be fetched.
        """


class Mirror:
    """A repository at `url`, in a folder of its own beneath `cache`. Several processes may share
    it; all methods block."""

    def __init__(self, url: str, cache: Path) -> None:
        self._url = url
        self._shown = mask_url(url)
        self._folder = cache / digest_bytes(url.encode()).removeprefix("sha256:")[:32]
        self._store = self._folder / "store"
        self._synced = self._folder / "synced"
        self.root = self._folder / "models"

    def start(self, names: Collection[str] | None) -> None:
        """As `Source.start`."""
        try:
            self.sync(names)
        except UnavailableError as error:
            if not self._synced.is_file():
                raise
            _LOG.error("%s; an earlier start's copy serves", error.message)

    def sync(self, names: Collection[str] | None, fresh_s: float = 0.0) -> None:
        """As `Source.sync`."""
        try:
            with self._alone():
                if names is None and self._age_s() < fresh_s:
                    return
                listings = self._list()
                failed = self._take(listings, names)
                self._remove_old(_KEPT_S)
                if names is None and not failed:
                    self._synced.touch()
                elif not self._synced.is_file():
                    self._synced.touch()
                    os.utime(self._synced, (0, 0))
        except HeadraceError:
            raise
        except Exception as error:
            _LOG.error("%s: %s", self._shown, error)
            raise UnavailableError(
                "the model repository cannot be read", got=type(error).__name__,
                mend="the server's log has the cause",
            ) from error  # fmt: skip
        if names is not None and failed:
            raise min(failed.items())[1]

    def _take(
        self, listings: dict[str, Listing], names: Collection[str] | None
    ) -> dict[str, HeadraceError]:
        """Link every model to what is listed; return why some could not be fetched."""
        failed: dict[str, HeadraceError] = {}
        for name, listing in listings.items():
            if names is not None and name not in names:
                self._make_known(name)
                continue
            try:
                self._fetch(name, listing)
            except Exception as error:  # noqa: BLE001 - of one model: the others go on
                _LOG.error("model %s of %s: %s", name, self._shown, error)
                full = isinstance(error, OSError) and is_full(error)
                failed[name] = UnavailableError(
                    f"model '{name}' cannot be fetched from its repository",
                    got="a disk that is full" if full else type(error).__name__,
                    mend="what served before serves on",
                )
                self._make_known(name)
        for link in self.root.iterdir():
            if link.name not in listings:
                self._touch(link)
                link.unlink()
        return failed

    def _list(self) -> dict[str, Listing]:
        """Return what lies in the repository, by model."""
        from fsspec.core import url_to_fs

        self._files, self._base = url_to_fs(self._url)
        self._files.invalidate_cache()
        found: dict[str, Any] = self._files.find(self._base, detail=True)
        if not found and not self._files.exists(self._base):
            raise UnavailableError("there is no such model repository", got=self._shown)
        if len(found) > _ENTRIES_MAX:
            raise UnavailableError("too many files", where=self._shown, expected=_ENTRIES_MAX)
        listings: dict[str, Listing] = {}
        for path, facts in found.items():
            parts = path.removeprefix(self._base).strip("/").split("/")
            if len(parts) > 1 and _are_names(parts) and facts.get("type") != "directory":
                listings.setdefault(parts[0], {})["/".join(parts[1:])] = _tag(facts)
        return listings

    def _fetch(self, name: str, listing: Listing) -> None:
        view = digest_json(listing).removeprefix("sha256:")
        if self._target(name) == view:
            return
        if not (self._store / view).is_dir():
            try:
                self._build(name, view, listing)
            except OSError as error:
                if not is_full(error):
                    raise
                self._remove_old(0.0)
                self._build(name, view, listing)
        self._touch(self.root / name)
        self._link(name, view)
        _LOG.info("model %s was fetched from %s", name, self._shown)

    def _build(self, name: str, view: str, listing: Listing) -> None:
        """Make the folder of a model: its own files, and a link for each folder in it."""
        inner: dict[str, Listing] = {}
        own: Listing = {}
        for path, tag in listing.items():
            folder, _, rest = path.partition("/")
            if rest:
                inner.setdefault(folder, {})[rest] = tag
            else:
                own[path] = tag
        links = {}
        for folder, files in inner.items():
            digest = digest_json(files).removeprefix("sha256:")
            links[folder] = digest
            if not (self._store / digest).is_dir():
                with self._draft(digest, files) as draft:
                    self._download(f"{name}/{folder}", files, draft, self.root / name / folder)
        with self._draft(view, own) as draft:
            self._download(name, own, draft, self.root / name)
            for folder, digest in links.items():
                (draft / folder).symlink_to(Path("..", digest))

    def _download(self, where: str, files: Listing, draft: Path, before: Path) -> None:
        """Fetch files into a folder; what `before` has already is copied from there."""
        known: Listing = {}
        with suppress(OSError, ValueError):
            known = json.loads(self._tags(before.resolve().name).read_text())
        for path, tag in files.items():
            target = draft / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if known.get(path) == tag and (before / path).is_file():
                shutil.copyfile(before / path, target)
            else:
                self._files.get_file(f"{self._base}/{where}/{path}", str(target))
        # An upload that went on meanwhile: what came is neither the old one nor the new one. (By a
        # listing again: `info` of one file may write its time in another way.)
        self._files.invalidate_cache()
        now = self._files.find(f"{self._base}/{where}", detail=True)
        for path, tag in files.items():
            facts = now.get(f"{self._base}/{where}/{path}", {})
            size = (draft / path).stat().st_size
            if _tag(facts) != tag or facts.get("size") not in {None, size}:
                raise FailedPreconditionError(f"'{where}/{path}' changed while it was fetched")

    @contextmanager
    def _draft(self, digest: str, files: Listing) -> Iterator[Path]:
        """Make a folder of the store, whole or not at all; its tags are kept beside it."""
        draft = self._store / f".{digest}"
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
        draft.mkdir()
        try:
            yield draft
            replace_file(self._tags(digest), json.dumps(files).encode())
            draft.rename(self._store / digest)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    def _tags(self, digest: str) -> Path:
        return self._store / f"{digest}.tags"

    def _target(self, name: str) -> str:
        link = self.root / name
        return link.readlink().name if link.is_symlink() else ""

    def _link(self, name: str, digest: str) -> None:
        draft = self.root / f".{name}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(Path("..", "store", digest))
        draft.replace(self.root / name)

    def _make_known(self, name: str) -> None:
        """Let a model be known, by a link to nothing where it has never been fetched."""
        if not (self.root / name).is_symlink():
            (self._store / _NOTHING).mkdir(exist_ok=True)
            self._link(name, _NOTHING)

    def _touch(self, view: Path) -> None:
        """From now on a view and what it links to may be old."""
        with suppress(OSError):
            for place in (view, *view.iterdir()):
                os.utime(place.resolve())

    def _remove_old(self, kept_s: float) -> None:
        """Remove what no model links to, and has not for so long."""
        views = {link.resolve() for link in self.root.iterdir() if link.is_symlink()}
        used = views | {
            place.resolve() for view in views if view.is_dir() for place in view.iterdir()
        }
        oldest_s = time.time() - kept_s
        for place in self._store.iterdir():
            if place.is_dir() and place.resolve() not in used and place.stat().st_mtime <= oldest_s:
                shutil.rmtree(place, ignore_errors=True)
                self._tags(place.name).unlink(missing_ok=True)

    def _age_s(self) -> float:
        try:
            return time.time() - self._synced.stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time."""
        for folder in (self.root, self._store):
            folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _are_names(parts: list[str]) -> bool:
    """Return whether a path of the repository is one that may be made here."""
    return len(parts) <= _DEPTH_MAX and all(map(is_model_name, parts))


def _tag(facts: dict[str, Any]) -> str:
    """Return what changes when a file does: its etag, else its time; and its size."""
    mark = next((str(facts[key]) for key in (*_ETAGS, *_TIMES) if facts.get(key)), "")
    return f"{mark} {facts.get('size')}"


def places(repositories: str | list[str], cache: Path) -> tuple[list[Path], list[Mirror]]:
    """Return the folders of the repositories, and what brings those here that lie elsewhere."""
    if isinstance(repositories, str):
        repositories = [repositories]
    mirrors = {url: Mirror(url, cache) for url in repositories if is_url(url)}
    roots = [mirrors[place].root if place in mirrors else Path(place) for place in repositories]
    return roots, list(mirrors.values())
