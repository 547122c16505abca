"""What goes into files that people share: no home folder, no secret of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["private"]

SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE|ACCESS_KEY|AUTH", re.IGNORECASE
)
SAID = re.compile(
    r"--?(\w+[-_])*(token|secret|passw\w*|credentials?|api[-_]?key|access[-_]?key)(=|$)",
    re.IGNORECASE,
)
SHORT = 8  # letters; what is shorter could be any word


def private(value: Any) -> Any:
    """A JSON value with the home folder as ~ and without the secrets of this environment.

    Left out are the values of environment variables with a name like HF_TOKEN or API_KEY, and the
    word after --token, --password and the like in a list of words.

    Args:
      value: texts, numbers, lists and mappings of them.

    Returns:
      The same, its texts rewritten.

    >>> private([str(Path.home() / "runs"), "--api-key", "abcdef"])
    ['~/runs', '--api-key', '(left out)']
    """
    secrets = [
        text for name, text in os.environ.items() if SECRET.search(name) and len(text) >= SHORT
    ]
    home = str(Path.home())
    return _without(value, sorted(secrets, key=len, reverse=True), home if len(home) > 1 else None)


def _without(value, secrets: list[str], home: str | None):
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "(left out)")
        if home is not None:
            value = re.sub(r"(?<![\w.-])" + re.escape(home) + r"(?![\w.-])", "~", value)
        return value
    if isinstance(value, Mapping):
        return {_without(k, secrets, home): _without(v, secrets, home) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        found = [_without(x, secrets, home) for x in value]
        for i, word in enumerate(found):
            said = SAID.match(word) if isinstance(word, str) else None
            if said and said[3]:
                found[i] = f"{said[0]}(left out)"
            elif said and i + 1 < len(found):
                found[i + 1] = "(left out)"
        return found
    return value
