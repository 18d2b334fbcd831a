"""What a name given for a sealed file is: a path, "-", or the URL of a place in a store, whose adapter it then loads.

Adapters are modules with `open_store(url) -> Store`.  They are loaded when a URL is used, never before.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, cast

from sealpoint.errors import FileError, UsageError
from sealpoint.names import printable

if TYPE_CHECKING:
    from sealpoint.store.ranges import RemoteSource
    from sealpoint.store.remote import Store

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ADAPTERS: Final = {"s3": "sealpoint.store.bucket", "oci": "sealpoint.store.oci"}

_plain_http = False  # of this process, as its user said once for all places that it names


@contextlib.contextmanager
def plain_http() -> Iterator[None]:
    """Within, stores that are not on this machine may be spoken to without TLS."""
    global _plain_http
    before, _plain_http = _plain_http, True
    try:
        yield
    finally:
        _plain_http = before


def is_url(name: str) -> bool:
    """Whether a name is no path but a URL, of whatever kind.  (A path that looks like one can be written ./s3://...)"""
    return _URL.match(name) is not None


def open_store(url: str) -> Store:
    """The place of that URL; sends nothing yet.

    Raises UsageError (no such kind of store, a package is missing, no good URL), SystemEnvironmentError.
    """
    found = _URL.match(url)
    scheme = found.group(1) if found else ""
    if scheme not in _ADAPTERS:
        raise UsageError(
            f"{printable(url)}: there is no store of the kind {scheme}://",
            hint="stores are " + " and ".join(f"{s}://" for s in _ADAPTERS),
        )
    adapter = importlib.import_module(_ADAPTERS[scheme])
    return cast("Store", adapter.open_store(url, plain_http=_plain_http))


def split_url(text: str) -> tuple[str, str]:
    """URL:OBJECT to (URL, OBJECT); what is there under the whole name is a file without an object.

    Asks the store only where the name alone does not tell.  Raises SystemEnvironmentError.
    """
    url, colon = text, text.partition("://")[2].find(":") >= 0
    while colon and is_url(url):
        if _names_file(url):
            return url, text[len(url) + 1 :]
        url, colon = url.rpartition(":")[0], ":" in url
    return text, ""


def _names_file(url: str) -> bool:
    try:
        if url.startswith("oci://"):  # a name with a tag ends where its grammar says
            from sealpoint.store.oci.reference import parse

            return bool(parse(url).where)
        open_remote(url).close()
    except UsageError:
        return False
    except FileError:
        pass  # it is something else: the error for that comes when it is read
    return True


def open_remote(url: str) -> RemoteSource:
    """A sealed file in a store, for reading.  Raises UsageError, FileError, SystemEnvironmentError."""
    from sealpoint.store.ranges import RemoteSource

    store = open_store(url)
    return RemoteSource(store.open(), store)
