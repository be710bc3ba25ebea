"""Keeps secrets out of what people see: messages, URLs and tracebacks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECRET_OPTION = re.compile(
    r"secret|passw|passphrase|token|credential|connection_string|sas|sig|key|auth|cookie", re.IGNORECASE
)
# The name of something secret: a whole word, or the end of one ("AccountKey", "aws_secret_access_key"),
# but not the name of an error ("NoCredentialsError") or of something else ("tokenizer", "design").
_NAME = (
    r"(?:(?i:secret|token|passw(?:or)?d|passphrase|credentials?|signature"
    r"|(?:account|access|shared|api|secret|private)[_-]?key)|(?<![A-Za-z])(?i:sig)(?![A-Za-z]))"
    r"(?![a-z])(?!\w{0,40}(?i:Error|Exception|Failure|Expired|Invalid|NotFound|Missing))[\w-]{0,40}"
)
_END = r"\s&;,'\""
# Prose may follow a colon; a secret has a digit in it, or is longer than a word.
_VALUE = rf"(?:(?=[^{_END}]*\d)[^{_END}]{{6,}}|[^{_END}]{{20,}})"
_SECRET_TEXT = (
    re.compile(r"(://)[^/\s@:]*:[^/\s@]+(?=@)"),
    re.compile(
        r"((?i:authorization)['\"]?\s*[:=]\s*['\"]?"
        r"(?i:(?:bearer|basic|digest|negotiate|token|sharedkey(?:lite)?|aws4-hmac-sha256)\s+))[^\s,'\"]+"
    ),
    re.compile(rf"((?i:authorization)['\"]?\s*[:=]\s*['\"]?){_VALUE}"),
    re.compile(r"(\b(?i:bearer)\s+)[A-Za-z0-9._~+/-]{16,}=*"),
    re.compile(rf"({_NAME}['\"]?\s?=\s?['\"]?)[^{_END}]+"),
    re.compile(rf"({_NAME}['\"]\s*:\s*(['\"]))(?:(?!\2).)+"),
    re.compile(rf"((?<=[_-]){_NAME}:\s*['\"]?)[^{_END}]+"),  # a header's name, not prose
    re.compile(rf"({_NAME}:\s*['\"]?){_VALUE}"),
)


def secret_values(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the texts in storage options, nested ones included, that must not be shown."""
    found: list[str] = []
    for name, value in options.items():
        if isinstance(value, dict):
            found.extend(secret_values(value))
        elif isinstance(value, (str, bytes)) and _SECRET_OPTION.search(name):
            found.append(value if isinstance(value, str) else value.decode("latin-1"))
    return tuple(sorted((text for text in found if len(text) > 3), key=len, reverse=True))


def redact(text: str, secrets: tuple[str, ...] = ()) -> str:
    """Return `text` with `secrets`, and whatever looks like one, replaced by "…"."""
    for secret in secrets:
        text = text.replace(secret, "…")
    for pattern in _SECRET_TEXT:
        text = pattern.sub(r"\1…", text)
    return text
