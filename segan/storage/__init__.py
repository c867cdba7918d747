"""One door to storage: local folders and `s3://` buckets by the same calls.

Credentials, region and endpoint come from the environment alone (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, ...), so no key is ever an argument, a field or part
of something pickled: objects carry URIs, and each process opens them for itself.
"""

from segan.storage.files import (
    FileInfo,
    RandomAccessFile,
    basename,
    check_access,
    delete_file,
    delete_folder,
    download,
    exists,
    file_sha256,
    file_size,
    is_partial,
    is_s3,
    iter_names,
    join,
    list_files,
    normalise,
    read_bytes,
    read_chunks,
    read_json,
    retry_access_checks,
    sha256,
    write_bytes,
    write_json,
)

__all__ = [
    "FileInfo",
    "RandomAccessFile",
    "basename",
    "check_access",
    "delete_file",
    "delete_folder",
    "download",
    "exists",
    "file_sha256",
    "file_size",
    "is_partial",
    "is_s3",
    "iter_names",
    "join",
    "list_files",
    "normalise",
    "read_bytes",
    "read_chunks",
    "read_json",
    "retry_access_checks",
    "sha256",
    "write_bytes",
    "write_json",
]
