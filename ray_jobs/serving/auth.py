"""The token that a served model requires; only its digest is kept and sent to the replicas."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from segan.errors import UsageError

TOKEN_VARIABLE = "SEGAN_SERVE_TOKEN"  # noqa: S105  the variable's name
MIN_TOKEN_LENGTH = 16  # characters


def digest(token: str) -> str:
    """The SHA-256 of a token, in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()


def configured_token_digest() -> str:
    """The digest of the token in SEGAN_SERVE_TOKEN, or "" if it is not set.

    Raises:
        UsageError: the token is blank, as that of a file that could not be written, or too short.
    """
    value = os.environ.get(TOKEN_VARIABLE)
    if value is None:
        return ""
    token = value.strip()  # a token from a file ends with a newline
    if len(token) < MIN_TOKEN_LENGTH:
        raise UsageError(
            f"{TOKEN_VARIABLE}: expected at least {MIN_TOKEN_LENGTH} characters, found "
            f"{len(token)}; generate a token with `openssl rand -hex 32`"
        )
    return digest(token)


def require_token(expected_digest: str) -> Callable[..., None]:
    """A FastAPI dependency that responds 401 to a missing or invalid token.

    Args:
        expected_digest: of the token; "" accepts every request.
    """
    scheme = HTTPBearer(
        auto_error=False, description="Required if the server was started with a token."
    )

    def check(given: HTTPAuthorizationCredentials | None = Depends(scheme)) -> None:  # noqa: B008
        if expected_digest and not (
            given and hmac.compare_digest(digest(given.credentials), expected_digest)
        ):
            reason = "invalid token" if given else "missing token"
            raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})

    return check
