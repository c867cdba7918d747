"""Reads and writes local folders and `s3://` buckets through the same functions.

Credentials, region and endpoint come from the environment alone (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, ...): no secret is ever an argument, a field or part
of a pickle. Objects carry URIs, and each process connects by itself.
"""

from segan.storage.documents import parse_json as parse_json
from segan.storage.documents import read_json as read_json
from segan.storage.documents import read_limited as read_limited
from segan.storage.documents import read_model as read_model
from segan.storage.documents import validate_model as validate_model
from segan.storage.files import FileInfo as FileInfo
from segan.storage.files import RandomAccessFile as RandomAccessFile
from segan.storage.files import append_bytes as append_bytes
from segan.storage.files import basename as basename
from segan.storage.files import check_access as check_access
from segan.storage.files import delete_file as delete_file
from segan.storage.files import delete_folder as delete_folder
from segan.storage.files import download as download
from segan.storage.files import exists as exists
from segan.storage.files import file_sha256 as file_sha256
from segan.storage.files import file_size as file_size
from segan.storage.files import is_partial as is_partial
from segan.storage.files import is_s3 as is_s3
from segan.storage.files import iter_names as iter_names
from segan.storage.files import join as join
from segan.storage.files import list_files as list_files
from segan.storage.files import normalise as normalise
from segan.storage.files import read_bytes as read_bytes
from segan.storage.files import read_chunks as read_chunks
from segan.storage.files import retry_access_checks as retry_access_checks
from segan.storage.files import sha256 as sha256
from segan.storage.files import write_buffers as write_buffers
from segan.storage.files import write_bytes as write_bytes
from segan.storage.files import write_json as write_json
from segan.storage.parallel import map_in_threads as map_in_threads
