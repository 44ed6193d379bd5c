"""Claim checks: a large clip stays in a file, and its Kafka record is only {"time", "uri", "sha256"}."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from streams.events.envelope import shown
from streams.events.types import Reason, Rejection

_SHA256 = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_MAX_CLAIM_BYTES = 16 * 1024


class Claim(msgspec.Struct, frozen=True):
    """Where a clip is, its SHA-256, and its event time as sent."""

    uri: str
    sha256: str
    time: int | float | str | None = None


def parse_claim(value: bytes) -> Claim:
    """The claim check in a record value. Raises NOT_UTF8, NOT_JSON, BAD_SCHEMA, TOO_LARGE."""
    if len(value) > _MAX_CLAIM_BYTES:
        raise Rejection(Reason.TOO_LARGE, f"a claim check of {len(value)} bytes, at most {_MAX_CLAIM_BYTES}")
    try:
        claim = msgspec.json.decode(value, type=Claim)
    except msgspec.ValidationError as error:
        raise Rejection(Reason.BAD_SCHEMA, f"claim check: {error}") from None
    except UnicodeDecodeError:
        raise Rejection(Reason.NOT_UTF8, "the claim check is not UTF-8") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Rejection(Reason.NOT_JSON, f"claim check: {error}") from None
    if not _SHA256.fullmatch(claim.sha256):
        raise Rejection(Reason.BAD_SCHEMA, f"sha256 {shown(claim.sha256)} of the claim check is not 64 hex digits")
    return claim


def read_claim(claim: Claim, roots: Sequence[Path], max_bytes: int) -> bytes:
    """Bytes of the clip that a claim check points to; blocks on the file system.

    Only regular files inside one of `roots` are read, after all links are resolved. Raises CLAIM_FORBIDDEN,
    CLAIM_MISSING, CLAIM_HASH, TOO_LARGE.
    """
    path = _allowed_path(claim.uri, roots)
    try:
        # non-blocking, because opening a FIFO would hang
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        looped = getattr(error, "errno", None) == errno.ELOOP  # from Python 3.13 on, `resolve` lets loops of links pass
        code = Reason.CLAIM_FORBIDDEN if looped else Reason.CLAIM_MISSING
        raise Rejection(code, f"{shown(claim.uri, 200)}: {reason}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not _opened_inside(descriptor, roots):
        os.close(descriptor)
        detail = f"{shown(claim.uri, 200)} is not a regular file inside audio.claim_roots"
        raise Rejection(Reason.CLAIM_FORBIDDEN, detail)
    with os.fdopen(descriptor, "rb") as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise Rejection(Reason.CLAIM_MISSING, f"{shown(claim.uri, 200)}: {error.strerror}") from None
    if len(content) > max_bytes:
        detail = f"the claimed file has {status.st_size} bytes, at most {max_bytes} are allowed"
        raise Rejection(Reason.TOO_LARGE, detail)
    found = hashlib.sha256(content).hexdigest()
    if found != claim.sha256.lower():
        raise Rejection(Reason.CLAIM_HASH, f"the file has sha256 {found}, the claim check says {claim.sha256.lower()}")
    return content


def _opened_inside(descriptor: int, roots: Sequence[Path]) -> bool:
    """Whether the open file is inside the roots: a folder may have become a link after the path was checked."""
    try:
        real = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:  # a system without /proc: the check of the path has to do
        return True
    return any(real.is_relative_to(root.resolve()) for root in roots)


def _allowed_path(uri: str, roots: Sequence[Path]) -> Path:
    """The resolved path of a file URI. For paths outside the roots the error does not reveal whether they exist."""
    try:
        parts = urlsplit(uri)
        path = unquote(parts.path, errors="strict")
    except ValueError:
        raise Rejection(Reason.CLAIM_FORBIDDEN, f"{shown(uri, 200)} is not a URI") from None
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        detail = f"{shown(uri, 200)} is not a local file URI (file:///...)"
        raise Rejection(Reason.CLAIM_FORBIDDEN, detail)
    if not roots:
        detail = "no folder is allowed for claim checks; name one in audio.claim_roots (SENSORIUM_AUDIO__CLAIM_ROOTS)"
        raise Rejection(Reason.CLAIM_FORBIDDEN, detail)
    try:
        real = Path(path).resolve()
        allowed = any(real.is_relative_to(root.resolve()) for root in roots)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name that is too long
        raise Rejection(Reason.CLAIM_FORBIDDEN, f"{shown(uri, 200)}: {error}") from None
    if not allowed:
        raise Rejection(Reason.CLAIM_FORBIDDEN, f"{shown(uri, 200)} is outside audio.claim_roots")
    return real
