"""Addresses of cameras as anybody may read them: in logs, errors and recordings."""

from __future__ import annotations

import re

_USER = re.compile(r"//[^\s/?#\"']*@")
_VALUE = re.compile(
    r"([\w-]*(?:pass|pw|token|secret|key|auth|credential|signature)[\w-]*=)(\"[^\"]*\"|'[^']*'|[^\s&;\"']+)",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A source, or what somebody says of one, without users, passwords and keys.

    They are `//user:password@`, `password=...` of a query and `user-pw=...` of a pipeline; a key
    that is none is hidden, too. Source: RFC 3986, 3.2.1, and rtspsrc's properties.
    """
    return _VALUE.sub(r"\1***", _USER.sub("//***@", text))
