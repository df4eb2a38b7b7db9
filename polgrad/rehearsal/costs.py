"""What a compiled program does: products, memory traffic and collectives, loops multiplied out.

XLA's own `cost_analysis` counts the body of a loop once, on every backend. Here the program's text is
walked: a loop whose condition compares its counter with a constant runs that often, any other as
often as the caller says.

A custom call says nothing of what it does. Of the TPU's attention kernel it is known: two products of the
queries' and keys' sizes forward, three for the queries' gradient and four for that of keys and
values, over the pairs that its mask leaves; and blocks that are read again for each block they meet. Any
other custom call has no products here, and moves what it is given and gives once.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

__all__ = ["COLLECTIVES", "Collective", "Costs", "measure"]

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2} | {
    "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "c64": 8,
}  # fmt: skip
# These move nothing by themselves.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "partition-id"}
_FREE |= {"after-all", "copy-done", "slice-done", "opt-barrier", "while", "conditional", "call"}
_FREE |= {"async-start"}  # whose computation is visited
_CUTS = ("dynamic-slice", "gather", "slice")
_PUTS = ("dynamic-update-slice", "scatter")
_FETCHES = ("copy-start", "slice-start")
# Their operands stand in their results, too.
_BEGINNINGS = ("all-gather-start", "collective-permute-start")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_STATEMENT = re.compile(r"^\s*(ROOT )?%?[\w.\-]+ = ")
# The attention kernel's phase, after the scope that `policies.attention_kernels` puts it in.
_KERNEL = re.compile(
    r"pairs_(?P<pairs>[\d.]+)_runs_(?P<runs>[\d.]+)\b.*splash_\w+?_(?P<phase>fwd|dq|dkv)"
)
# A collective that another fusion has begun.
_BEGUN = re.compile(r'"async_collective_fusion_config":\{"flag_start":"\d')


class Collective(NamedTuple):
    """Collectives of one kind.

    Attributes:
      count: how many run.
      bytes: that a device sends, by the usual ring algorithms.
    """

    count: float
    bytes: float


class Costs(NamedTuple):
    """Of one run of a program, on each device.

    Attributes:
      flops: multiplications and additions of matrix products and convolutions.
      bytes: read and written in the memory of the device, fusions taken as one.
      collectives: by kind.
    """

    flops: float
    bytes: float
    collectives: dict[str, Collective]

    def __sub__(self, other: "Costs") -> "Costs":
        """What is left without a part of the program."""
        none = Collective(0.0, 0.0)
        left = {
            kind: Collective(*(a - b for a, b in zip(found, other.collectives.get(kind, none))))
            for kind, found in self.collectives.items()
        }
        left = {kind: found for kind, found in left.items() if found.count > 0}
        return Costs(self.flops - other.flops, self.bytes - other.bytes, left)


class _Op(NamedTuple):
    name: str
    type: str
    code: str
    inside: str  # of the parentheses
    operands: list[str]
    attributes: str
    root: bool


class _Program(NamedTuple):
    computations: dict[str, dict[str, _Op]]
    entry: str


def measure(
    text: str, *, unknown_trips: tuple[float, ...] = (1.0,), multiply: bool = True
) -> Costs:
    """Costs of a program from the text of its optimised HLO.

    Args:
      text: `compiled.as_text()`.
      unknown_trips: how often a loop runs whose end is decided by data, such as decoding; then one
        of those inside of it, and so on, the last for all that are deeper. 0 leaves it out.
      multiply: False counts each loop once, as XLA does.

    Returns:
      The costs.
    """
    program = _parse(text)
    flops = moved = 0.0
    collectives: dict[str, Collective] = {}
    for times, ops in _visited(program, program.entry, 1.0, unknown_trips, multiply):
        for op in ops.values() if times else ():
            flops += times * _flops(program, op, ops)
            moved += times * _traffic(program, op, ops)
            for kind, sent in _collectives(program, op, ops):
                seen = collectives.get(kind, Collective(0.0, 0.0))
                collectives[kind] = Collective(seen.count + times, seen.bytes + times * sent)
    return Costs(flops, moved, collectives)


# --- Text ---------------------------------------------------------------------------------------


def _parse(text: str) -> _Program:
    computations, entry, current, last = {}, "", None, ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and _STATEMENT.match(line):
            op = _operation(line.strip())
            current[op.name], last = op, op.name
        elif last in (current or {}) and line.strip() != "}":
            # What a kernel's author notes of it may have lines of its own.
            current[last] = current[last]._replace(attributes=current[last].attributes + line)
    return _Program(computations, entry)


def _operation(line: str) -> _Op:
    left, right = line.split(" = ", 1)
    kind, rest = _type(right)
    code, rest = rest.split("(", 1)
    inside = _until_closed("(" + rest)
    given, attributes = inside[1:-1], rest[len(inside) - 1 :]
    name = left.removeprefix("ROOT ").lstrip("%")
    root = left.startswith("ROOT")
    return _Op(name, kind, code, given, _NAME.findall(given), attributes, root)


def _type(text: str) -> tuple[str, str]:
    if text.startswith("("):
        kind = _until_closed(text)
        return kind, text[len(kind) :].lstrip()
    kind, rest = text.split(" ", 1)
    return kind, rest


def _until_closed(text: str) -> str:
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: i + 1]
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _arrays(kind: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(d, tuple(map(int, filter(None, s.split(","))))) for d, s in _ARRAY.findall(kind)]


def _size(kind: str) -> float:
    """Bytes in the device's memory; what XLA keeps on the chip (space 1) is not there."""
    return sum(_whole(part) for part in _parts(kind) if "S(1)" not in part)


def _parts(kind: str) -> list[str]:
    """The types of a tuple, those in tuples inside of it too, or the one type that it is."""
    if not kind.startswith("("):
        return [kind]
    # Splitting at commas or parentheses would cut layouts, {1,0:T(8,128)S(1)}.
    return re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", kind)


def _called(op: _Op, name: str) -> str | None:
    found = re.search(rf"\b{name}=%?([\w.\-]+)", op.attributes)
    return found[1] if found else None


# --- Loops --------------------------------------------------------------------------------------


def _visited(program, name, times, unknown, multiply) -> Iterator[tuple[float, dict[str, _Op]]]:
    """Every computation that runs on its own, and how often. Fusions belong to their caller."""
    ops = program.computations[name]
    yield times, ops
    for op in ops.values():
        if op.code == "while":
            trips = _trips(program, op)
            deeper = unknown if trips is not None else unknown[1:] or unknown
            trips = (unknown[0] if trips is None else trips) if multiply else 1.0
            yield from _visited(program, _called(op, "body"), times * trips, deeper, multiply)
        for inner in _inner(program, op):
            yield from _visited(program, inner, times, unknown, multiply)


def _inner(program: _Program, op: _Op) -> list[str]:
    """Computations that an operation runs once: those of a call, all branches of a choice."""
    if op.code not in ("call", "async-start", "conditional"):
        return []
    names = _NAME.findall(op.attributes.split("metadata=")[0])
    return [name for name in names if name in program.computations]


def _trips(program: _Program, op: _Op) -> float | None:
    """How often a loop runs, None where data decide."""
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', op.attributes)
    if known:
        return float(known[1])
    condition = program.computations[_called(op, "condition")]
    root = next(o for o in condition.values() if o.root)
    limits = [o for o in map(condition.get, root.operands) if o and o.code == "constant"]
    if root.code == "compare" and "direction=LT" in root.attributes and limits:
        return float(limits[0].inside)
    return None


# --- What an operation costs --------------------------------------------------------------------


def _flops(program: _Program, op: _Op, ops) -> float:
    if op.code == "fusion":
        inner = program.computations[_called(op, "calls")]
        return sum(_flops(program, o, inner) for o in inner.values())
    kernel = _kernel(op, ops)
    if kernel is not None:
        return kernel.flops
    if op.code not in ("dot", "convolution"):
        return 0.0
    (_, out), (_, left), (_, right) = (
        _arrays(kind)[0] for kind in (op.type, *(ops[name].type for name in op.operands[:2]))
    )
    if op.code == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.attributes)[1]
        contracted = [left[int(axis)] for axis in filter(None, axes.split(","))]
        return 2.0 * math.prod(out) * math.prod(contracted)
    return 2.0 * _products(op, out, left, right)


def _products(op: _Op, out, left, right) -> float:
    """Multiplications of a convolution, those with padding and holes left out."""
    left_labels, right_labels, out_labels = re.match(
        r".*dim_labels=(\w+)_(\w+)->(\w+)", op.attributes
    ).groups()
    inputs = right[right_labels.index("i")]
    spatial = [label for label in out_labels if label.isdigit()]
    window = _window(op.attributes, len(spatial))
    pairs = 1.0
    for axis, (size, stride, low, left_hole, right_hole) in zip(spatial, window):
        given, wanted = left[left_labels.index(axis)], out[out_labels.index(axis)]
        at = np.arange(wanted)[:, None] * stride + np.arange(size)[None] * right_hole - low
        inside = (at >= 0) & (at <= (given - 1) * left_hole) & (at % left_hole == 0)
        pairs *= float(inside.sum())
    groups = re.search(r"batch_group_count=(\d+)", op.attributes)
    rest = out[out_labels.index("b")] * out[out_labels.index("f")]
    return pairs * rest * inputs / (int(groups[1]) if groups else 1)


def _window(attributes: str, axes: int) -> list[tuple[int, int, int, int, int]]:
    """(size, stride, low padding, dilation of the left, of the right) for each axis."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    text = found[1] if found else ""

    def read(name, default):
        value = re.search(rf"\b{name}=([\d_x\-]+)", text)
        return value[1].split("x") if value else [default] * axes

    sizes, strides = map(int, read("size", "1")), map(int, read("stride", "1"))
    lows = (int(pad.split("_")[0]) for pad in read("pad", "0_0"))
    holes = map(int, read("lhs_dilate", "1")), map(int, read("rhs_dilate", "1"))
    return list(zip(sizes, strides, lows, *holes))


def _traffic(program: _Program, op: _Op, ops) -> float:
    if op.code in _FREE or op.code.endswith("-done"):
        return 0.0
    if op.code in _CUTS:
        return 2.0 * _size(op.type)
    if op.code in _PUTS:
        return 2.0 * _size(ops[_put(op)].type)
    if op.code in _FETCHES:
        return _fetched(op)
    if op.code in _BEGINNINGS:
        return _size(op.type)
    inner = program.computations.get(_called(op, "calls") or "") if op.code == "fusion" else None
    given = [(place, ops[name].type) for place, name in enumerate(op.operands) if name in ops]
    if inner is None:
        read, written = sum(_size(kind) for _, kind in given), _size(op.type)
    else:
        read = sum(min(_read(program, inner, place), _size(kind)) for place, kind in given)
        root = next(o for o in inner.values() if o.root)
        written = _written(program, inner, root, _parts(op.type))
    kernel = _kernel(op, ops)
    if kernel is not None:
        return kernel.runs * (read + written) + kernel.read_again
    return read + written


def _fetched(op: _Op) -> float:
    """Bytes of a copy or cut that runs beside the compute, at those of its ends that are in the memory.

    The type of a cut is ((from), to, flag); that of a copy (to, from, flag), both ends of one size.
    """
    ends = _parts(op.type)[:2]
    return _whole(ends[1]) * sum("S(1)" not in end for end in ends)


class _Kernel(NamedTuple):
    """What the TPU's attention kernel does; `runs` of 1 where every visit of its loop runs it."""

    flops: float
    read_again: float
    runs: float


def _kernel(op: _Op, ops) -> _Kernel | None:
    """The costs of the attention kernel, None for any other operation."""
    found = _KERNEL.search(op.attributes) if op.code == "custom-call" else None
    if found is None:
        return None
    pairs, runs = float(found["pairs"]), float(found["runs"])
    # The first arrays of more than two axes and of numbers are the queries [.., H, T, K], the keys
    # [.., N, S, K] and the values.
    kinds = [ops[name].type for name in op.operands if name in ops]
    shapes = [(kind, *_arrays(kind)[0]) for kind in kinds]
    arrays = [(k, s) for k, d, s in shapes if len(s) > 2 and d in ("bf16", "f16", "f32")]
    (of_query, query), (of_key, key), (of_value, _) = arrays[:3]
    products = {"fwd": 2, "dq": 3, "dkv": 4}[found["phase"]]
    flops = runs * pairs * products * 2.0 * math.prod(query) * key[-2]
    if found["phase"] == "dkv":
        # Queries and their results' gradients are read for each block of keys.
        times, again = pairs * key[-2] / _block_size(op, "block_kv_dkv"), 2 * _size(of_query)
    else:
        block = _block_size(op, "block_q_dq" if found["phase"] == "dq" else "block_q")
        times = pairs * query[-2] / block * query[-3] / key[-3]
        again = _size(of_key) + _size(of_value)
    return _Kernel(flops, runs * again * max(times - 1.0, 0.0), runs)


def _block_size(op: _Op, name: str) -> int:
    return int(re.search(rf"\b{name}\W+(\d+)", op.attributes)[1])


def _put(op: _Op) -> str:
    """What an operation in place writes."""
    return op.operands[1 if op.code == "dynamic-update-slice" else -1]


def _read(program: _Program, inner: dict[str, _Op], place: int) -> float:
    """Bytes that a fusion reads of an operand: of one that it only cuts from, what it cuts."""
    given = next(
        (o for o in inner.values() if o.code == "parameter" and o.inside == str(place)), None
    )
    return 0.0 if given is None else _used(program, inner, given)


def _used(program: _Program, inner: dict[str, _Op], given: _Op) -> float:
    """Bytes of a value that its users inside of a fusion read; whole ones are read once."""
    cut = 0.0
    for user in inner.values():
        for place in (i for i, name in enumerate(user.operands) if name == given.name):
            if user.code in _CUTS and place == 0:
                cut += _whole(user.type)
            elif user.code == "bitcast":
                cut += _used(program, inner, user)
            elif user.code == "fusion":
                cut += _read(program, program.computations[_called(user, "calls")], place)
            elif user.code != "tuple" and not (user.code in _PUTS and place == 0):
                return _whole(given.type)
    return cut


def _written(program: _Program, inner: dict[str, _Op], op: _Op, kinds: list[str]) -> float:
    """Bytes that a fusion writes for results of such kinds: of what it changes in place, the change."""
    if op.code == "tuple":
        results = zip((inner[name] for name in op.operands), kinds, strict=True)
        return sum(_written(program, inner, result, [kind]) for result, kind in results)
    if op.code == "bitcast":
        return _written(program, inner, inner[op.operands[0]], kinds)
    if op.code == "fusion":
        nested = program.computations[_called(op, "calls")]
        return _written(program, nested, next(o for o in nested.values() if o.root), kinds)
    # Where results are kept is said outside of the fusion. One that is an operand is handed on.
    written = 0.0 if op.code == "parameter" else sum(map(_size, kinds))
    return min(written, _whole(inner[_put(op)].type)) if op.code in _PUTS else written


def _collectives(program: _Program, op: _Op, ops) -> Iterator[tuple[str, float]]:
    """Kinds of the collectives that an operation begins, and what a device sends in each.

    TPUs have most of them inside of fusions. Where compute runs meanwhile, the collective stands in
    three: one that begins it, one that computes, one that waits; the flags of the latter two are
    set. A sum of which a device keeps its own part is a fusion of its own.
    """
    kind = op.code.removesuffix("-start")
    if kind in COLLECTIVES:
        yield kind, _sent(kind, op, ops)
    elif op.code == "fusion":
        called = _called(op, "calls")
        inner = program.computations[called]
        for o in inner.values():
            if o.code in COLLECTIVES and not _BEGUN.search(o.attributes):
                scattered = o.code == "all-reduce" and called.startswith("all-reduce-scatter")
                kind = "reduce-scatter" if scattered else o.code
                yield kind, _sent(kind, o, inner)


def _sent(kind: str, op: _Op, ops) -> float:
    """Bytes that a device sends in a ring of its group."""
    given = sum(_whole(ops[name].type) for name in op.operands if name in ops)
    group = _group(op.attributes)
    share = (group - 1) / group
    if kind == "all-gather":
        return given * (group - 1)
    if kind == "all-reduce":
        return 2.0 * given * share
    return given * share if kind in ("reduce-scatter", "all-to-all") else given


def _whole(kind: str) -> float:
    return float(sum(_BYTES.get(d, 1) * math.prod(s) for d, s in _arrays(kind)))


def _group(attributes: str) -> int:
    """Devices of a group, from any of the ways in which groups are written."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", mesh[2]))
    return 2
