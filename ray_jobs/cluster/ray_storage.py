"""Where Ray writes its own notes of a training or a study."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs

from segan import storage
from segan.storage import s3


def ray_storage(uri: str) -> dict[str, Any]:
    """The `storage_path` and `storage_filesystem` of Ray's RunConfig for a URI.

    Ray would parse the URI, in which a space, [, ] and letters beyond ASCII are errors and %20 is
    another name. The file system contains no credentials: each process finds them by itself.
    """
    if not storage.is_s3(uri):
        return {"storage_path": uri}  # a path, which Ray does not parse
    options = {"region": s3.region()}
    if endpoint := s3.endpoint():
        address = urlsplit(endpoint)
        options |= {"endpoint_override": address.netloc, "scheme": address.scheme}
    return {
        "storage_path": uri.removeprefix("s3://"),
        "storage_filesystem": fs.S3FileSystem(**options),
    }
