"""Reads JSON files of storage, whose content is not trusted, as validated models.

Whatever is wrong with such a file (too large, nested too deep, not JSON, of another shape) becomes
one CorruptedError that names it, so that a damaged file among many can be passed over.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from segan.errors import CorruptedError
from segan.storage.files import read_chunks

MAX_JSON_BYTES = 64 * 2**20  # a manifest of 190,000 shards, or 47 million images
MAX_SHOWN_VALUE = 60  # characters of a value that is quoted in a message

T = TypeVar("T")


def read_limited(uri: str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Reads a file of at most `max_bytes`; raises CorruptedError for a larger one."""
    content = bytearray()
    for chunk in read_chunks(uri):
        content += chunk
        if len(content) > max_bytes:
            raise CorruptedError(f"{uri}: expected at most {max_bytes} bytes, found more")
    return bytes(content)


def read_json(uri: str, expected: str = "") -> Any:
    """Reads a JSON file.

    Args:
        expected: what the file should be, for the message.

    Raises:
        NotFoundError: there is no such file.
        CorruptedError: it is too large, nested too deep, or not JSON.
    """
    return parse_json(uri, read_limited(uri), expected)


def parse_json(uri: str, content: bytes, expected: str = "") -> Any:
    """Parses the content of a JSON file; raises as `read_json`."""
    try:
        # Not json.loads: it exceeds the stack on nested brackets, and accepts lone surrogates.
        return from_json(content)
    except ValueError as error:
        reason = f"not {expected} (no JSON: {error})" if expected else f"expected JSON ({error})"
        raise CorruptedError(f"{uri}: {reason}") from None


def read_model(uri: str, model: type[T], expected: str) -> T:
    """Reads a JSON file as a model.

    Args:
        model: a pydantic model or a dataclass.
        expected: what the file should be, for the message: "an ensemble".

    Raises:
        NotFoundError: there is no such file.
        CorruptedError: the file is not JSON, or not such a model.
    """
    return validate_model(uri, model, read_json(uri, expected), expected)


def validate_model(uri: str, model: type[T], value: Any, expected: str) -> T:
    """Validates a parsed JSON value as a model; raises CorruptedError with the first mistake."""
    try:
        return TypeAdapter(model).validate_python(value)
    except ValidationError as error:
        raise CorruptedError(f"{uri}: not {expected} ({first_mistake(error)})") from None


def first_mistake(error: ValidationError) -> str:
    """The first mistake of a validation in a few words, with its key."""
    details = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(str(part)[:MAX_SHOWN_VALUE] for part in details["loc"])
    message = " ".join(details["msg"].removeprefix("Value error, ").split())
    return f"{key}: {message}" if key else message
