"""Does a message help? Four parts: the field, what came, what is allowed, what to do.

Field and value are told to the scorer by whoever made the mistake, and must stand in the message as
they are. What is allowed and the remedy are read from the text, and an empty phrase is neither:
"expected a valid value; please fix it" has none of the four.
"""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Heard", "Score", "heard", "said", "score"]

LIBRARY = "For simplicity, JAX has removed"  # a note of jax on every error
DO = """drop pad scale rescale squeeze renumber encode normalise subtract widen divide resize
transpose flatten shuffle fill cut complete repeat remove rename unscale""".split()
DO_WITH = """use write pass give set make try check choose change call say put add take train start
turn return name keep wrap import install read look go build save delete free move run restore lower
raise convert spread evaluate list mask split open let leave bring lengthen shorten feed append
restart see copy wait reduce compute draw stop end update describe replace""".split()
EMPTY = set(
    """a an the it its this that them these those they is are be to of in on with for and or as at
    by so again please another other others different correct valid right proper appropriate
    good better value values input inputs something anything else argument arguments
    parameter parameters use give try write make put set problem error errors thing things
    number numbers integer integers float floats array arrays string strings docs
    documentation instead correctly properly your you one ones""".split()
)
KINDS = """int ints integer integers float floats floating number numbers string strings str bool
array arrays list lists tuple mapping dict function functions module key keys path paths folder file
files true false finite name names axis axes shape example examples batch batches row rows classes
objective gradient step mean optimizer schedule once multiple device devices field fields carry
logits probabilities length predicate instance increasing process run checkpoint format
version directory weights config configuration state space bytes disk writable picture pictures one
both cpu gpu tpu""".split()

CODE = r"(?:[\w.]+\([^)]*\)|[\w.]+\[[^\]]+\]|\b[\w.]+=[\w.\[\](){}'\"<>-]+)"
VALUE = r"(?:\w+, \w+, \w+|\d|[<>]=?|[\[({'\"]|\.\.)"
START = r"(?:[;:,(.]\s+|\b(?:or|and|then)\s+|\b(?:for|to)\s[^;:.]{1,60}?\s)"
STATES = r"\S* (?:is|has|are|got|names|runs?|needs?|was)\b"
THERE = r"\b(?:there (?:are|is)|the \w+ (?:are|is)|(?:has|have|gives?)(?: the)?(?: axes| fields)?) "
REST = r"(?P<rest>(?:[^;.]|\.(?=\S))*)"
REMEDIES = [
    r"(?i)\bperhaps you meant:? \S+",
    r"\(default: [^)]+\)",
    rf"\b(?:such as|as in|for example) (?=[^;]*?(?:{VALUE}|[\w]+\.\w+|_|\b[A-Z]))[^;]+",
    r"(?:^|[;,(:] )[\w.'\"=/+-]+ (?:is (?:a )?usual|switches it off|drops nothing|is off)\b",
    rf"[;:] (?={CODE})(?!{CODE}{STATES})(?![^;]*\bexpected\b)[^;]+",
]
ALLOWED = [
    r"\bexpected (?P<said>(?:[^;:.]|[.:](?=\S))+)",
    r"\b(?:needs?|wants?) (?P<said>(?:[^;:.]|[.:](?=\S))+)",
    r"\bmust (?P<said>(?:[^;:.]|[.:](?=\S))+)",
    r"\b(?:at most|at least|only|one of|between) (?P<said>[^;:]+)",
    r"(?P<said>\(-?[\d.]+(?:\.\.| to )-?[\d.]+\))",
    THERE + r"(?P<said>[\[('\"\d][^;:]*)",
    r"\bwas (?P<said>\S+), is now \S+",
    r"(?i)\bperhaps you meant (?P<said>'[^']+')",
    r"(?P<said>--[\w-]+ \[?[A-Z]{3,}\b)",
    r"\bwhich (?:cannot|does not|do not) (?P<said>[^;:]+)",
]


class Score(NamedTuple):
    """Which of the four parts a message has; `total` counts them.

    >>> Score(True, True, False, True).total
    3
    """

    field: bool
    value: bool
    allowed: bool
    remedy: bool

    @property
    def total(self) -> int:
        """0 to 4."""
        return sum(self)


def score(text: str, field: str, value: str) -> Score:
    """Read a message as a user would who made this one mistake.

    Args:
      text: the message.
      field: what the user calls the thing that is wrong.
      value: what it was, as the user wrote it or as Python shows it.

    Returns:
      A `Score`.

    Raises:
      ValueError: if field or value is empty: every text holds them.

    >>> score("rate is -1, expected a number > 0; 1e-3 is a usual start", "rate", "-1").total
    4
    >>> score("rate is wrong, expected a valid value; please fix it", "rate", "-1").total
    1
    """
    if not field.strip() or not value.strip():
        raise ValueError(f"field is {field!r} and value {value!r}, expected two texts; name both")
    text = " ".join(text.split())
    there = [m.span() for m in re.finditer(_whole(field), text)]
    came = any(
        not any(a <= m.start() and m.end() <= b for a, b in there) or field == value
        for m in re.finditer(_whole(value), text)
    )
    spans = _remedies(text)
    rest = text
    for a, b in spans:
        rest = rest[:a] + ";" * (b - a) + rest[b:]
    allowed = _allowed(rest, value)
    if not allowed and len(spans) > 1:  # one is what is meant, another what to do
        allowed = any("perhaps you meant" in text[a:b].lower() for a, b in spans)
    return Score(bool(there), came, allowed, bool(spans))


def _whole(part: str) -> str:
    """A part of a text that is not a part of a longer word."""
    before = r"(?<![\w.])" if re.match(r"\w", part) else ""
    after = r"(?!\w)(?!\.\d)" if re.search(r"\w$", part) else ""
    return before + re.escape(part) + after


def _remedies(text: str) -> list[tuple[int, int]]:
    """Where the text says what to do."""
    found = [m.span() for pattern in REMEDIES for m in re.finditer(pattern, text)]
    for verbs, bare in ((DO, True), (DO_WITH, False)):
        for m in re.finditer(rf"{START}(?P<verb>{'|'.join(verbs)})\b{REST}", text):
            words = re.findall(r"[\w'\"=()\[\].-]+", m["rest"])
            if bare or any(word.lower().strip(".") not in EMPTY for word in words):
                found.append((m.start("verb"), m.end()))
    return [span for span in found if span[1] - span[0] > 3]


def _allowed(text: str, value: str) -> bool:
    """Does the text, without its remedies, say what may be given?"""
    for pattern in ALLOWED:
        for m in re.finditer(pattern, text):
            told = re.sub(_whole(value), " ", m["said"])
            words = {word.lower() for word in re.findall(r"[A-Za-z]+", told)}
            if re.search(VALUE, told) or words & set(KINDS):
                return True
    return False


class Heard(NamedTuple):
    """What came of a mistake.

    Attributes:
      kind: the type of the error, or None if there was none.
      text: its message with the notes that are not of jax.
      programs: compiled before it was raised.
      seconds: until it was raised.

    >>> Heard(ValueError, "no", 0, 0.0).text
    'no'
    """

    kind: type | None
    text: str
    programs: int
    seconds: float


def heard(mistake: Callable) -> Heard:
    """Make a mistake and listen.

    Args:
      mistake: a function without arguments.

    Returns:
      A `Heard`.

    >>> heard(lambda: int("x")).kind
    <class 'ValueError'>
    """
    from tests.compiles import counted

    error, began = None, time.perf_counter()
    with counted() as programs:
        try:
            mistake()
        except (Exception, SystemExit) as raised:
            error = raised
    seconds = time.perf_counter() - began
    if error is None:
        return Heard(None, "", programs.count, seconds)
    return Heard(type(error), text_of(error), programs.count, seconds)


def text_of(error: BaseException) -> str:
    """The message of an error with its notes, as Python shows them, without those of jax.

    >>> text_of(KeyError("f"))
    "'f'"
    """
    notes = getattr(error, "__notes__", [])
    own = [note for note in notes if LIBRARY not in note and not note.startswith("-----")]
    return "\n".join([str(error), *own])


def said(words: str) -> Heard:
    """What the command line answers, on both streams, and 0 for the compiled programs it needs.

    Args:
      words: after `nnkit`.

    Returns:
      A `Heard`; its kind is SystemExit if the exit code is not 0.

    >>> said("trian").kind
    <class 'SystemExit'>
    """
    from nnkit.cli.main import main
    from tests.compiles import counted

    out, began = io.StringIO(), time.perf_counter()
    with counted() as programs, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(words.split())
        except SystemExit as ended:
            code = ended.code
    text = " ".join(out.getvalue().replace("│", " ").split())
    seconds = time.perf_counter() - began
    return Heard(SystemExit if code else None, text, programs.count, seconds)
