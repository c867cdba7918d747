"""Storage: a folder and a bucket behave alike, and errors name the URI and the cause."""

import os
import pickle
import posixpath
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segan import storage
from segan.config import Config
from segan.data.archive.reader import Pair
from segan.data.records.format import Manifest, Shard
from segan.data.records.shards import ShardTask
from segan.data.stream.batches import StreamSpec
from segan.data.stream.sampler import DeterministicSampler
from segan.errors import StorageError, UsageError
from segan.runs.checkpoint import Checkpoint
from segan.runs.run import Run
from segan.storage import s3

SECRET = "a-secret-that-must-stay-in-the-environment"
NAMES = ["plain.json", "deep/er/file.bin", "a b.bin", "ü/é.bin", "100%/x+y=z.bin", "a#b?c&d.bin"]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.integration)])
def empty_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URI below which no file exists."""
    if request.param == "local":
        return str(tmp_path / "place")
    return storage.join(request.getfixturevalue("bucket"), "place")


@pytest.fixture
def wrong_key(bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return bucket


@pytest.fixture
def dead_endpoint(monkeypatch: pytest.MonkeyPatch) -> str:
    """An endpoint on which no server listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return endpoint


def error_message(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(StorageError) as caught:
        call(*arguments)
    return str(caught.value)


# One spelling


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/runs//first/", "s3://bucket/runs/first"),
        ("s3://bucket//", "s3://bucket"),
        ("/x/sub/../a", "/x/a"),
        ("/x/./a//b/", "/x/a/b"),
        ("/..", "/"),
        ("file:///x/../y", "/y"),
    ],
)
def test_a_place_has_one_spelling(uri: str, expected: str) -> None:
    assert storage.normalise(uri) == expected
    assert storage.normalise(expected) == expected


def test_a_relative_path_with_dots_is_the_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert storage.normalise("../a") == str(tmp_path / "a")


def test_above_a_link_is_the_folder_of_its_target(tmp_path: Path) -> None:
    """As the system reads the path, and not the folder that the link lies in."""
    (tmp_path / "far/folder").mkdir(parents=True)
    (tmp_path / "far/file").write_bytes(b"far")
    (tmp_path / "link").symlink_to("far/folder")
    assert storage.read_bytes(f"{tmp_path}/link/../file") == b"far"
    assert storage.normalise(f"{tmp_path}/link/../file") == f"{tmp_path}/far/file"


@pytest.mark.parametrize(
    "uri", ["", " ", "\n", "a\0b", "s3://b/../x", "s3://b/./x", "s3://", "s3:///x"]
)
def test_a_place_that_names_nothing_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        storage.normalise(uri)


# Local folders and buckets behave alike


@pytest.mark.parametrize("name", NAMES)
def test_written_files_are_read_and_listed(empty_uri: str, name: str) -> None:
    uri = storage.join(empty_uri, name)
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"one"
    assert storage.list_files(empty_uri) == [storage.FileInfo(name, 3)]
    storage.delete_file(uri)
    assert not storage.exists(uri)


def test_a_second_write_replaces_the_first(empty_uri: str) -> None:
    uri = storage.join(empty_uri, "file")
    storage.write_bytes(uri, b"a long one")
    storage.write_bytes(uri, b"")
    assert storage.read_bytes(uri) == b""
    assert storage.list_files(empty_uri) == [storage.FileInfo("file", 0)]


def test_a_large_file_is_read_unchanged(empty_uri: str) -> None:
    content = os.urandom(12_000_000)  # larger than one part of a multipart upload
    uri = storage.join(empty_uri, "large")
    storage.write_bytes(uri, content)
    assert storage.sha256(storage.read_bytes(uri)) == storage.sha256(content)


def test_a_file_is_read_at_any_offset(empty_uri: str) -> None:
    uri = storage.join(empty_uri, "file")
    storage.write_bytes(uri, b"0123456789")
    with storage.RandomAccessFile(uri) as file:
        assert file.size == 10
        assert file.read_at(3, 4) == b"3456"
        assert file.read_at(8, 4) == b"89"
        assert file.read_at(10, 4) == file.read_at(-1, 4) == b""
        assert file.etag == storage.RandomAccessFile(uri).etag
        storage.write_bytes(uri, b"9876543210")
        assert file.etag != storage.RandomAccessFile(uri).etag


def test_names_are_sorted_at_every_depth(empty_uri: str) -> None:
    names = ["b", "a/z", "a/b/c", "a-b", "B", "a/b/a"]
    for name in names:
        storage.write_bytes(storage.join(empty_uri, name), b"x")
    assert [file.name for file in storage.list_files(empty_uri)] == sorted(names)
    assert storage.list_files(empty_uri, in_parallel=True) == storage.list_files(empty_uri)
    assert [file.name for file in storage.list_files(empty_uri + "/a/")] == ["b/a", "b/c", "z"]
    assert list(storage.iter_names(empty_uri, "b")) == ["a-b", "b"]


@pytest.mark.parametrize("most", [0, 2])
def test_folders_are_listed_side_by_side_or_as_one(
    empty_uri: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["a", "b/c", "b/d/e", "f/g", "f//h"]:
        storage.write_bytes(f"{empty_uri}/{name}", b"x")
    monkeypatch.setattr(s3, "MAX_LISTED_FOLDERS", most)
    assert storage.list_files(empty_uri, in_parallel=True) == storage.list_files(empty_uri)


def test_a_folder_is_listed_without_its_neighbours(empty_uri: str) -> None:
    storage.write_bytes(storage.join(empty_uri, "run/x"), b"")
    storage.write_bytes(storage.join(empty_uri, "run-2/y"), b"")
    assert [file.name for file in storage.list_files(storage.join(empty_uri, "run"))] == ["x"]
    storage.delete_folder(storage.join(empty_uri, "run"))
    assert [file.name for file in storage.list_files(empty_uri)] == ["run-2/y"]


def test_a_missing_folder_is_listed_as_empty_and_deleted(empty_uri: str) -> None:
    assert storage.list_files(empty_uri) == []
    storage.delete_folder(empty_uri)
    assert not storage.exists(empty_uri)


def test_a_folder_does_not_exist_as_a_file(empty_uri: str) -> None:
    storage.write_bytes(storage.join(empty_uri, "folder/file"), b"")
    assert not storage.exists(storage.join(empty_uri, "folder"))


def test_json_is_read_as_it_was_written(empty_uri: str) -> None:
    value = {"b": [1, 2.5, None], "a": "ü", "deep": {"er": True}}
    uri = storage.join(empty_uri, "value.json")
    storage.write_json(uri, value)
    assert storage.read_json(uri) == value
    assert storage.read_bytes(uri).startswith(b'{\n  "a"')


def test_invalid_json_is_named(empty_uri: str) -> None:
    uri = storage.join(empty_uri, "value.json")
    storage.write_bytes(uri, b"{half")
    assert error_message(storage.read_json, uri).startswith(f"{uri}: expected JSON (")
    storage.write_bytes(uri, b"\xff\xfe\xfa")
    assert error_message(storage.read_json, uri).startswith(f"{uri}: expected JSON (")


@pytest.mark.parametrize(
    "call", [storage.read_bytes, storage.read_json, storage.delete_file, storage.RandomAccessFile]
)
def test_a_missing_file_is_named(empty_uri: str, call: Callable[[str], object]) -> None:
    uri = storage.join(empty_uri, "absent")
    assert error_message(call, uri) == f"{uri}: not found"


# Names and URIs


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/../b", "a/..", ".", "/etc", "~", "~root/x", "a\\b", "", "a//b", "a/"]
)
@pytest.mark.parametrize("root", ["/data", "s3://bucket/data"])
def test_a_name_outside_its_folder_is_refused(root: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"expected a name inside {root}"):
        storage.join(root, "inside", name)


NAME_PARTS = st.sampled_from(["..", ".", "", "~", "/", "//", "\\", "a", "b.png", " ", "..."])


@given(st.lists(st.lists(NAME_PARTS | st.text(max_size=5), max_size=4).map("/".join), max_size=3))
def test_a_joined_uri_is_below_its_root(names: list[str]) -> None:
    try:
        joined = storage.join("/root/of/all", *names)
    except UsageError:
        return
    assert joined == posixpath.normpath(joined)
    assert (joined + "/").startswith("/root/of/all/")
    assert joined.count("/") == 3 + "/".join(names).count("/") + bool(names)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3://bucket", "s3://bucket"),
        ("/a/b/", "/a/b"),
        ("file:///a/b", "/a/b"),
    ],
)
def test_uris_are_normalised(uri: str, expected: str) -> None:
    assert storage.normalise(uri) == expected
    assert storage.normalise(expected) == expected


def test_a_local_path_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert storage.normalise("records/a") == f"{tmp_path}/records/a"
    assert storage.normalise("~/records") == "/home/somebody/records"


def test_the_home_of_an_unknown_user_is_refused() -> None:
    with pytest.raises(UsageError, match="~no-such-user/x: expected an existing user after ~"):
        storage.normalise("~no-such-user/x")


@pytest.mark.parametrize("uri", ["gs://bucket/x", "https://host/x", "S3://bucket/x", "s4://b"])
def test_another_scheme_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match=f"{uri}: expected a local path or s3://bucket/prefix"):
        storage.normalise(uri)


@pytest.mark.parametrize("uri", ["s3://", "s3:///prefix"])
def test_a_missing_bucket_name_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="bucket name missing; expected s3://bucket/prefix"):
        storage.normalise(uri)


def test_a_scheme_with_one_slash_is_refused() -> None:
    with pytest.raises(UsageError, match="s3:/bucket/x: expected"):
        storage.normalise("s3:/bucket/x")


# Atomic writes


@pytest.mark.parametrize("before", [b"before", None])
def test_a_failed_local_write_leaves_the_file_unchanged(
    tmp_path: Path, before: bytes | None
) -> None:
    """With a folder as the target, the rename at the end of the write fails."""
    target = tmp_path / "target"
    target.mkdir()
    if before:
        (target / "file").write_bytes(before)
    assert error_message(storage.write_bytes, str(target), b"new").startswith(f"{target}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert [path.read_bytes() for path in target.iterdir()] == ([before] if before else [])


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    uri = str(tmp_path / "file" / "below")
    assert error_message(storage.write_bytes, uri, b"").startswith(f"{uri}: ")
    assert error_message(storage.list_files, str(tmp_path / "file")).startswith(
        f"{tmp_path}/file: "
    )


# Errors of a bucket


@pytest.mark.integration
@pytest.mark.parametrize(
    "call", [storage.check_access, storage.list_files, storage.read_bytes, storage.exists]
)
def test_a_wrong_key_is_reported_without_retries(
    wrong_key: str, call: Callable[[str], object]
) -> None:
    """Retries would last for 300 s, longer than a test may."""
    said = error_message(call, f"{wrong_key}/file")
    assert "gave up" not in said
    assert said.startswith(f"{wrong_key}/file: access denied; check AWS_ACCESS_KEY_ID")
    assert SECRET not in said


@pytest.mark.integration
def test_a_right_key_works_again_after_a_wrong_one(bucket: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        error_message(storage.read_bytes, f"{bucket}/file")
    storage.write_bytes(f"{bucket}/file", b"")
    assert storage.exists(f"{bucket}/file")


@pytest.mark.integration
@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_reported() -> None:
    uri = "s3://a-bucket-that-nobody-made/prefix"
    assert error_message(storage.check_access, uri) == (
        f"{uri}: bucket does not exist; create it or correct the name"
    )
    for call in (storage.read_bytes, storage.exists, storage.list_files, storage.delete_folder):
        assert "bucket does not exist" in error_message(call, uri)
    assert "bucket does not exist" in error_message(storage.write_bytes, uri, b"")


def test_an_endpoint_where_nothing_listens_is_named_by_the_first_check(dead_endpoint: str) -> None:
    """The retries of other calls would last for 300 s, longer than a test may."""
    said = error_message(storage.check_access, "s3://bucket/file")
    assert said.startswith(f"s3://bucket/file: no valid response from {dead_endpoint} (")


@pytest.mark.parametrize("call", [storage.list_files, storage.read_bytes, storage.exists])
def test_every_call_names_an_endpoint_where_nothing_listens(
    dead_endpoint: str, call: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGAN_STORAGE_RETRY_TIMEOUT_S", "0")
    said = error_message(call, "s3://bucket/file")
    assert said.startswith("s3://bucket/file: ")
    assert dead_endpoint in said
    assert "\n" not in said


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf"])
def test_an_invalid_retry_timeout_is_refused(
    dead_endpoint: str, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("SEGAN_STORAGE_RETRY_TIMEOUT_S", given)
    with pytest.raises(
        UsageError, match=f"SEGAN_STORAGE_RETRY_TIMEOUT_S={given}: expected a number of seconds"
    ):
        storage.exists("s3://bucket/file")


@pytest.mark.parametrize("given", ["127.0.0.1:8333", "ftp://host", "http://", "http://a b"])
@pytest.mark.parametrize("call", [storage.check_access, storage.read_bytes])
def test_an_invalid_endpoint_is_refused(
    dead_endpoint: str, monkeypatch: pytest.MonkeyPatch, given: str, call: Callable[[str], object]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", given)
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL: expected http://host:port"):
        call("s3://bucket/file")


def test_deleted_credentials_are_not_cached(
    dead_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "CHECK_TIMEOUT_S", 0.5)
    assert "no valid response" in error_message(storage.check_access, "s3://bucket/x")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert error_message(storage.check_access, "s3://bucket/x") == (
        "s3://bucket/x: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_PROFILE", "no-such-profile"), ("AWS_REGION", "no region")]
)
@pytest.mark.parametrize("call", [storage.check_access, storage.read_bytes, storage.write_bytes])
def test_an_invalid_aws_configuration_is_named(
    dead_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    call: Callable[..., object],
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"^invalid AWS configuration: .*{value}") as caught:
        call("s3://bucket/file", *[b""] * (call is storage.write_bytes))
    assert "\n" not in str(caught.value)


def test_an_invalid_bucket_name_is_one_line(dead_endpoint: str) -> None:
    said = error_message(storage.read_bytes, "s3://no bucket/file")
    assert said.startswith("s3://no bucket/file: ")
    assert "\n" not in said


def test_a_local_path_needs_no_access_check(tmp_path: Path) -> None:
    storage.check_access(str(tmp_path / "absent"))


# Credentials stay in the environment


def test_no_pickled_object_contains_credentials(
    dead_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "CHECK_TIMEOUT_S", 0.5)
    sequence = DeterministicSampler(
        Manifest(
            height=1,
            width=1,
            classes=1,
            splits={
                "train": [Shard(name="s", num_rows=2, bytes=1, sha256="0", content_digest="0")]
            },
            num_inputs=2,
            num_rejects=0,
            source="s3://b/a",
            fingerprint="f",
        ),
        "train",
        0,
    )
    carried = [
        Config(),
        Run("s3://bucket/run"),
        StreamSpec("s3://bucket/records", sequence, 1, 0, 2, 1),
        ShardTask(
            "s3://b/r", "train", 0, 1, (4, 3), (Pair("a", "train", "s3://b/a.jpg", "s3://b/a.png"),)
        ),
        Checkpoint("s3://bucket/run/checkpoints/one", "one", {}, {}),
    ]
    error_message(storage.check_access, "s3://bucket")  # creates a client
    assert s3.shared_client() is s3.shared_client()
    for one in carried:
        assert SECRET.encode() not in pickle.dumps(one)
        assert pickle.loads(pickle.dumps(one)) == one or isinstance(one, Run)
        assert SECRET not in repr(one)


@pytest.mark.parametrize("call", [storage.normalise, storage.check_access])
def test_credentials_in_a_uri_are_refused_and_not_shown(
    dead_endpoint: str, call: Callable[[str], object]
) -> None:
    with pytest.raises(ValueError, match="AWS_ACCESS_KEY_ID") as caught:
        call(f"s3://somebody:{SECRET}@bucket/prefix")
    assert isinstance(caught.value, StorageError | UsageError)
    assert SECRET not in str(caught.value)
