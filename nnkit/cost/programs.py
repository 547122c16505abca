"""A compiled program read from its text: computations, how often they run, what they move."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

__all__ = ["Collective", "collectives", "parse", "traffic"]

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
    "s64": 8, "u64": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
# instructions that move nothing themselves
STILL = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
    "opt-barrier partition-id replica-id async-start async-update async-done copy-done send-done "
    "recv-done domain add-dependency get-dimension-size custom-call-done".split()
)
_LEAF = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,<= ]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


class Leaf(NamedTuple):
    """One array of a type: its bytes, and whether it lies in main memory."""

    size: float
    main: bool


class Instruction(NamedTuple):
    """One line of a computation: name, opcode, arrays of its type, operands, and the rest."""

    name: str
    code: str
    leaves: tuple[Leaf, ...]
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def size(self) -> float:
        """Bytes of main memory of its output."""
        return sum(leaf.size for leaf in self.leaves if leaf.main)


class Program(NamedTuple):
    """Computations by name, each the instructions by name in order, and the name of the entry."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    partitions: int


class Collective(NamedTuple):
    """One kind of communication of a program, all its occurrences together.

    Attributes:
      kind: such as "all-gather".
      count: how often a step does it, loops as often as they run.
      group: devices that take part in one of them.
      payload: bytes that one device puts in, in all of them.
      moved: bytes that one device sends by a ring, in all of them.

    >>> Collective("all-reduce", 1, 4, 100.0, 150.0).moved
    150.0
    """

    kind: str
    count: float
    group: int
    payload: float
    moved: float


def parse(text: str) -> Program:
    """The computations of `compiled.as_text()`.

    Args:
      text: HLO.

    Returns:
      A `Program`.

    Raises:
      ValueError: if it has no entry: it is no HLO text.

    >>> program = parse(jax.jit(jnp.sin).lower(jnp.ones(3)).compile().as_text())
    >>> [i.code for i in program.computations[program.entry].values()][0]
    'parameter'
    """
    computations, current, entry = {}, None, ""
    for line in text.splitlines():
        found = _HEAD.match(line)
        if found and " = " not in line.split("(")[0]:
            current = computations.setdefault(found[2], {})
            entry = found[2] if found[1] else entry
        elif current is not None and (made := _instruction(line)):
            current[made.name] = made
    if not entry:
        raise ValueError(f"expected the text of a compiled program, got {text[:60]!r}")
    many = re.search(r"num_partitions=(\d+)", text)
    return Program(computations, entry, int(many[1]) if many else 1)


def _instruction(line: str) -> Instruction | None:
    found = _LINE.match(line)
    if not found:
        return None
    kind, after = _cut(found[3])
    code, _, after = after.strip().partition("(")
    inside, rest = _cut("(" + after)
    leaves = tuple(_leaf(*x) for x in _LEAF.findall(kind) if x[0] in BYTES or x[0][:2] == "f8")
    if code.strip() in ("constant", "parameter"):  # a value, or a number: no operands
        inside, rest = "", inside + rest
    names = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(found[2], code.strip(), leaves, names, rest, bool(found[1]))


def _cut(text: str) -> tuple[str, str]:
    """A balanced "(...)" at the start, or a word, and what follows."""
    if not text.startswith("("):
        word, _, rest = text.partition(" ")
        return word, rest
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def _leaf(dtype: str, shape: str, layout: str) -> Leaf:
    sizes = [int(n.strip(" <=")) for n in shape.split(",") if n.strip(" <=")]
    width = BYTES.get(dtype, 1 if dtype.startswith("f8") else 4)
    return Leaf(math.prod(sizes) * width, not re.search(r"S\([1-9]", layout or ""))


def _called(made: Instruction, *names: str) -> list[str]:
    """The computations an instruction names under `names`, such as body=%loop."""
    found = []
    for name in names:
        for one, many in re.findall(rf"\b{name}=(?:%?([\w.\-]+)|\{{([^}}]*)\}})", made.rest):
            found += [one] if one else [x.strip().lstrip("%") for x in many.split(",")]
    return found


def _times(program: Program, made: Instruction) -> int | None:
    """How often the body of a while runs: the compiler's note, or the bound of its condition."""
    note = re.search(r"known_trip_count[^\d]*?n[^\d]*?(\d+)", made.rest)
    if note:
        return int(note[1])
    (condition,) = _called(made, "condition") or [""]
    lines = program.computations.get(condition, {})
    bounds = [re.search(r"\((\d+)\)", i.rest) for i in lines.values() if i.code == "constant"]
    whole = [int(b[1]) for b in bounds if b]
    return whole[0] if len(whole) == 1 else None


def executed(program: Program, *, fusions: bool = False):
    """(times, computation, instruction) for all that a step runs; and loops of unknown length.

    >>> text = jax.jit(jnp.sin).lower(jnp.ones(3)).compile().as_text()
    >>> len(executed(parse(text))[0]) >= 2
    True
    """
    found, unknown = [], []

    def visit(name, times):
        for made in program.computations.get(name, {}).values():
            found.append((times, name, made))
            if made.code == "while":
                n = _times(program, made)
                if n is None:
                    unknown.append(made.name)
                for body in _called(made, "body"):
                    visit(body, times * (1 if n is None else n))
            elif made.code == "conditional":
                for branch in _called(
                    made, "branch_computations", "true_computation", "false_computation"
                ):
                    visit(branch, times)
            elif made.code in ("call", "async-start") or (fusions and made.code == "fusion"):
                for inner in _called(made, "to_apply", "calls", "called_computations"):
                    visit(inner, times)

    visit(program.entry, 1)
    return found, unknown


def collectives(program: Program) -> tuple[Collective, ...]:
    """What devices send each other in one step, by kind and size of the group.

    Sent by one device around a ring of n: 2 (n-1)/n of an all-reduce's bytes, n-1 times what it
    puts into an all-gather, (n-1)/n of a reduce-scatter or all-to-all, all of a permute.

    Args:
      program: from `parse`.

    Returns:
      `Collective`s, the one that moves most first.

    >>> text = jax.jit(jnp.sin).lower(jnp.ones(3)).compile().as_text()
    >>> collectives(parse(text))
    ()

    Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002 (all-reduce).
    """
    sums: dict[tuple[str, int], list[float]] = {}
    for times, place, made in executed(program, fusions=True)[0]:
        kind = made.code.removesuffix("-start")
        n = _group(program, made)
        if kind not in KINDS or n < 2:
            continue
        lines = program.computations[place]
        payload = sum(leaf.size for o in made.operands if o in lines for leaf in lines[o].leaves)
        share = {"all-reduce": 2 * (n - 1) / n, "all-gather": n - 1.0}
        share |= dict.fromkeys(("reduce-scatter", "all-to-all", "ragged-all-to-all"), (n - 1) / n)
        one = sums.setdefault((kind, n), [0.0, 0.0, 0.0])
        one[0] += times
        one[1] += times * payload
        one[2] += times * payload * share.get(kind, 1.0)
    all_ = [Collective(kind, s[0], n, s[1], s[2]) for (kind, n), s in sums.items()]
    return tuple(sorted(all_, key=lambda c: (-c.moved, c.kind, c.group)))


def _group(program: Program, made: Instruction) -> int:
    """How many devices take part in one collective."""
    if "collective-permute" in made.code:
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", made.rest)
        return pairs[1].count("{") if pairs else program.partitions
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", made.rest)
    if listed:
        return len(listed[1].split(","))
    rule = re.search(r"replica_groups=\[([\d,]+)\]<=", made.rest)
    if rule:
        return int(rule[1].split(",")[-1])
    axes = re.search(r"replica_groups=(?:@\w+|mesh)?[\[<]([^\]>]*)[\]>]\s*\{([^}]*)\}", made.rest)
    if axes:
        sizes = dict(re.findall(r"['\"]?(\w+)['\"]?\s*=\s*(\d+)", axes[1]))
        named = re.findall(r"(\w+)", axes[2])
        return math.prod(int(sizes.get(a, 1)) for a in named)
    return program.partitions


def traffic(program: Program) -> float:
    """Bytes that one device reads and writes in main memory in one step: an estimate.

    Every instruction that is run reads its operands and writes its output once; what lies inside a
    fusion stays on the chip. Where only a slice of an operand is read, or of an output written,
    only the slice counts. What the compiler keeps in on-chip memory is not counted.

    Args:
      program: from `parse`.

    Returns:
      Bytes.

    >>> text = jax.jit(lambda x: x + 1).lower(jnp.ones(1000)).compile().as_text()
    >>> traffic(parse(text)) >= 8000
    True

    Williams et al. 2009, doi:10.1145/1498765.1498785 (what a roofline needs).
    """
    total = 0.0
    for times, place, made in executed(program)[0]:
        lines = program.computations[place]
        total += times * _moved(program, lines, made)
    return total


def _moved(program: Program, lines, made: Instruction) -> float:
    if made.code in STILL or made.code.endswith("-done"):
        return 0.0
    reads = [lines[o].size if o in lines else 0.0 for o in made.operands]
    if made.code in ("dynamic-slice", "slice", "gather"):
        return 2 * made.size
    if made.code in ("dynamic-update-slice", "scatter") and len(reads) > 1:
        return 2 * reads[1 if made.code[0] == "d" else -1]
    if made.code.removesuffix("-start") in KINDS and made.code.endswith("-start"):
        return sum(reads) + (made.leaves[-1].size * made.leaves[-1].main if made.leaves else 0.0)
    if made.code == "copy-start":
        return (reads[0] if reads else 0.0) + (made.leaves[0].size * made.leaves[0].main)
    if made.code == "fusion":
        inner = program.computations.get((_called(made, "calls") or [""])[0], {})
        return _fused(inner, reads, made.size)
    return sum(reads) + made.size


def _fused(inner: dict[str, Instruction], reads: list[float], written: float) -> float:
    """Bytes of a fusion: slices of parameters that are only sliced, updates that are in place."""
    users: dict[str, list[Instruction]] = {}
    for made in inner.values():
        for operand in made.operands:
            users.setdefault(operand, []).append(made)
    total = 0.0
    parameters = [made for made in inner.values() if made.code == "parameter"]
    for made in parameters:
        found = re.match(r"\((\d+)\)", made.rest)
        i = int(found[1]) if found else len(reads)
        whole = reads[i] if i < len(reads) else 0.0
        total += min(whole, sum(_reads(made, user, inner, whole) for user in _past(made, users)))
    root = next((made for made in inner.values() if made.root), None)
    if root is not None and root.code == "dynamic-update-slice" and len(root.operands) > 1:
        update = inner.get(root.operands[1])
        written = min(written, sum(leaf.size for leaf in update.leaves) if update else written)
    return total + written


def _past(made, users):
    """Who uses a value, looking through what only renames it."""
    for user in users.get(made.name, []):
        if user.code in ("bitcast", "convert", "copy", "reshape"):
            yield from _past(user, users)
        else:
            yield user


def _reads(made, user, inner, whole: float) -> float:
    if user.code in ("dynamic-slice", "slice", "gather"):
        return sum(leaf.size for leaf in user.leaves)
    if user.code == "dynamic-update-slice" and user.operands and user.root:
        first = inner.get(user.operands[0])
        while first is not None and first.code in ("bitcast", "convert", "copy", "reshape"):
            first = inner.get(first.operands[0]) if first.operands else None
        if first is not None and first.name == made.name:
            return 0.0  # written in place
    return whole
