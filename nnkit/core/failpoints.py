"""Named points in the code where a test makes the process die, the disk fail, or time pass.

    NNKIT_FAILPOINTS="save.rename=kill"          SIGKILL of itself just before the commit
    NNKIT_FAILPOINTS="save.*=ENOSPC@3"           the third point that matches fails: disk full
    NNKIT_FAILPOINTS="save.arrays=sleep:1.5,run.log=SIGTERM@7"

The variable is read once, when this module is imported. Without it a point costs one comparison.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import signal
import threading
import time
from typing import NamedTuple

__all__ = ["failpoint", "names"]

# Every point of the code, and what has just happened, or is about to, when it is reached.
NAMES = {
    "save.begin": "nothing of the checkpoint is on disk",
    "save.folder": "the temporary folder is made",
    "save.arrays": "the arrays are written",
    "save.digests": "every file is hashed and synced",
    "save.manifest": "the manifest is written and synced",
    "save.rename": "all is synced; the rename that commits comes next",
    "save.renamed": "the rename is done, not yet synced",
    "save.committed": "the checkpoint is committed; old ones are not yet deleted",
    "save.parts": "this one of many processes has written its part",
    "delete.rename": "an old checkpoint is about to be renamed",
    "delete.renamed": "it is renamed; its files are about to go",
    "delete.removed": "its files are gone",
    "sweep.remove": "a leftover of a dead process is about to go",
    "run.write": "config.json, env.json, STATUS or the like is about to be replaced",
    "run.log": "a row is about to be appended",
    "lock.take": "the lock of a run folder is about to be taken",
    "lock.taken": "it is taken",
    "data.read": "the examples of a batch are about to be read",
}
FORM = 'expected "name=action", several with commas, such as "save.rename=kill,save.*=ENOSPC@3"'
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EACCES")}
SIGNALS = {"kill": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
_RULE = re.compile(r"([a-z_*?.]+)=([A-Za-z]+)(?::([0-9.]+))?(?:@([0-9]+))?")


class Rule(NamedTuple):
    """What happens where.

    Attributes:
      pattern: a name, `*` and `?` match any letters.
      action: kill, SIGTERM, SIGINT, ENOSPC, EIO, EACCES or sleep.
      seconds: of a sleep.
      at: the only match that counts, from 1; 0 is every one.

    >>> Rule("save.*", "kill", 0.0, 3).at
    3
    """

    pattern: str
    action: str
    seconds: float
    at: int


class Plan:
    """The rules of a process, and how often each has matched.

    >>> plan = Plan(parsed("run.log=EIO@2"))
    >>> plan.reached("run.log")
    >>> plan.reached("run.log")
    Traceback (most recent call last):
        ...
    OSError: [Errno 5] failpoint run.log: Input/output error
    """

    def __init__(self, rules: list[Rule]):
        self.rules, self.matches = rules, [0] * len(rules)
        self.lock = threading.Lock()  # points are in the main thread and in those that save

    def reached(self, name: str) -> None:
        """Does what the rules say of this point."""
        for i, rule in enumerate(self.rules):
            if not fnmatch.fnmatchcase(name, rule.pattern):
                continue
            with self.lock:
                self.matches[i] += 1
                due = rule.at in (0, self.matches[i])
            if due:
                _happen(name, rule)


def parsed(text: str) -> list[Rule]:
    """The rules of a text.

    Args:
      text: "name=action", several with commas.

    Returns:
      A list of `Rule`; none for an empty text.

    Raises:
      ValueError: if a rule has another form, matches no point of the code, or names no action.

    >>> parsed("save.rename=kill, save.*=sleep:0.5@3")[1]
    Rule(pattern='save.*', action='sleep', seconds=0.5, at=3)
    """
    rules = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        match = _RULE.fullmatch(word)
        if not match:
            raise ValueError(f"NNKIT_FAILPOINTS has {word!r}; {FORM}, or unset it")
        pattern, action, seconds, at = match.groups()
        if not fnmatch.filter(NAMES, pattern):
            raise ValueError(
                f"NNKIT_FAILPOINTS has {word!r}: no point is named {pattern!r}, expected one of "
                f"{', '.join(NAMES)}, or a pattern of them with *; correct it, or unset it"
            )
        known = action in SIGNALS or action in ERRORS or action == "sleep"
        if not known or (seconds is None) == (action == "sleep"):
            actions = ", ".join([*SIGNALS, *ERRORS, "sleep:SECONDS"])
            raise ValueError(
                f"NNKIT_FAILPOINTS has {word!r}: expected one of the actions {actions}; correct "
                "it, or unset it"
            )
        if at == "0" or (seconds and seconds.count(".") > 1):
            raise ValueError(f"NNKIT_FAILPOINTS has {word!r}: points count from 1; {FORM}")
        rules.append(Rule(pattern, action, float(seconds or 0.0), int(at or 0)))
    return rules


def _happen(name: str, rule: Rule) -> None:
    if rule.action == "sleep":
        time.sleep(rule.seconds)
    elif rule.action in ERRORS:
        number = ERRORS[rule.action]
        raise OSError(number, f"failpoint {name}: {os.strerror(number)}")
    else:
        os.kill(os.getpid(), SIGNALS[rule.action])


_rules = parsed(os.environ.get("NNKIT_FAILPOINTS", ""))
_plan: Plan | None = Plan(_rules) if _rules else None


def failpoint(name: str) -> None:
    """A point of the code that a test can make fail; nothing happens without NNKIT_FAILPOINTS.

    Args:
      name: one of `names()`, written out, so that a search finds it.

    Raises:
      OSError: if a rule says so.

    >>> failpoint("save.rename")
    """
    if _plan is not None:
        _plan.reached(name)


def names() -> list[str]:
    """All points of the code.

    Returns:
      A list of str, in the order in which a run comes by them.

    >>> names()[:3]
    ['save.begin', 'save.folder', 'save.arrays']
    """
    return list(NAMES)
