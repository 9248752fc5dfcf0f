"""MMAction2's and SlowFast's proposals, a pickle, read without executing anything.

`pickle.load` calls whatever the file names. Here the opcodes are walked by hand (`pickletools`), and
the only things they can make are texts, numbers, tuples, lists, dictionaries and arrays of floats.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vidpipe.data.layouts.common import fail

MAX_BYTES = 2**30
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
VALUES = frozenset(
    (  # noqa: SIM905
        "INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE "
        "BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 STRING BINSTRING SHORT_BINSTRING BYTEARRAY8"
    ).split()
)
_MARK = object()


@dataclass
class _Name:
    """`module.name`, which is never looked up."""

    text: str


@dataclass
class _DType:
    code: str
    order: str = "<"


@dataclass
class _Array:
    value: NDArray[np.float64] | None = None


class _Refused(Exception):
    pass


def read_proposal_pickle(path: str | Path) -> dict[str, NDArray[np.float64]]:
    """`{"video,second": (N, 5) boxes and scores}` of a pickle of proposals.

    Raises:
        VidpipeError: for a file that is no such dictionary, with what it holds instead.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise fail(f"{path}: over {MAX_BYTES // 2**20} MiB; expected proposals")
        found = _walk(path.read_bytes())
    except OSError as error:
        raise fail(f"{path}: {error.strerror}") from None
    except _Refused as error:
        raise fail(f"{path}: not converted, nothing was executed: {error}") from None
    except (ValueError, IndexError, TypeError, KeyError, AttributeError) as error:
        raise fail(f"{path}: not a readable pickle ({error})") from None
    if not isinstance(found, dict):
        raise fail(
            f"{path}: a {type(found).__name__}; expected a dictionary 'video,second' -> boxes"
        )
    result = {}
    for key, value in found.items():
        boxes = value.value if isinstance(value, _Array) else None
        if not isinstance(key, str) or boxes is None or boxes.ndim != 2 or boxes.shape[1] != 5:
            raise fail(f"{path}: {str(key)[:80]!r}: expected 'video,second' -> an array (N, 5)")
        result[key] = boxes
    return result


def convert_proposals(source: str | Path, target: str | Path) -> int:
    """Write the rows of a pickle of proposals as CSV `video, second, x1, y1, x2, y2, score`.

    Returns:
        The number of boxes. Raises VidpipeError as `read_proposal_pickle`, and for a key that is not
        `video,second`.
    """
    lines = []
    for key, boxes in read_proposal_pickle(source).items():
        video, _, second = key.rpartition(",")
        if not video or not second.isascii() or not second.isdigit() or set(video) & set(',"\r\n'):
            raise fail(f"{source}: {key[:80]!r}: expected 'video,second'")
        for row in boxes.tolist():
            lines.append(f"{video},{int(second):04d},{','.join(f'{x:.6g}' for x in row)}\n")
    Path(target).write_text("".join(lines))
    return len(lines)


def _walk(data: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, arg, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name in VALUES:
            stack.append(arg)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(cast(int, arg))] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(cast(int, arg))])
        elif not _containers(name, stack) and not _objects(name, arg, stack):
            raise _Refused(f"it has the opcode {name}, which proposals do not need")
    raise _Refused("it ends early")


def _containers(name: str, stack: list[Any]) -> bool:
    if name in ("EMPTY_DICT", "EMPTY_LIST"):
        stack.append({} if name == "EMPTY_DICT" else [])
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name in ("TUPLE", "LIST"):
        items = _popped(stack)
        stack.append(tuple(items) if name == "TUPLE" else items)
    elif name in ("APPEND", "APPENDS"):
        items = [stack.pop()] if name == "APPEND" else _popped(stack)
        stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS", "DICT"):
        items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else _popped(stack)
        if name == "DICT":
            stack.append({})
        stack[-1].update(zip(items[::2], items[1::2], strict=True))
    else:
        return False
    return True


def _popped(stack: list[Any]) -> list[Any]:
    start = len(stack) - 1
    while stack[start] is not _MARK:
        start -= 1
        if start < 0:
            raise _Refused("it has no mark where one is needed")
    items = stack[start + 1 :]
    del stack[start:]
    return items


def _objects(name: str, arg: Any, stack: list[Any]) -> bool:
    if name == "GLOBAL":
        stack.append(_Name(str(arg).replace(" ", ".")))
    elif name == "STACK_GLOBAL":
        member, module = stack.pop(), stack.pop()
        stack.append(_Name(f"{module}.{member}"))
    elif name == "REDUCE":
        given, function = stack.pop(), stack.pop()
        stack.append(_made(function, given))
    elif name == "BUILD":
        _filled(stack.pop(), stack[-1])
    else:
        return False
    return True


def _made(function: Any, given: tuple[Any, ...]) -> Any:
    """What a call would have made, of the few that an array of floats needs."""
    name = function.text if isinstance(function, _Name) else str(type(function).__name__)
    plain = name.replace("numpy._core.", "numpy.core.")
    if plain == "numpy.core.multiarray._reconstruct":
        return _Array()
    if plain == "numpy.dtype" and str(given[0]) in ("f4", "f8"):
        return _DType(str(given[0]))
    if plain == "numpy.core.numeric._frombuffer":
        return _Array(_array(given[0], given[1], given[2], given[3] == "F"))
    if plain in ("__builtin__.bytes", "builtins.bytes") and not given:
        return b""
    if plain == "_codecs.encode" and given[1:] == ("latin1",):
        return str(given[0]).encode("latin1")
    if plain == "numpy.dtype":
        raise _Refused(f"it has an array of {str(given[0])[:20]!r}; expected floats")
    raise _Refused(f"it calls {name[:80]!r}")


def _filled(state: Any, target: Any) -> None:
    if isinstance(target, _DType):
        target.order = str(state[1])
    elif isinstance(target, _Array):
        _, shape, dtype, fortran, data = state
        target.value = _array(data, dtype, shape, fortran)
    else:
        raise _Refused(f"it sets the state of a {type(target).__name__}")


def _array(data: Any, dtype: Any, shape: Any, fortran: bool) -> NDArray[np.float64]:
    if not isinstance(dtype, _DType) or dtype.order not in ("<", ">", "=", "|"):
        raise _Refused("it has an array of no float type")
    sides = tuple(_sides(shape))
    kind = np.dtype(dtype.code).newbyteorder(cast(Any, dtype.order))
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    if math.prod(sides) * kind.itemsize != len(raw):
        raise _Refused(f"it has an array of {sides} in {len(raw)} bytes")
    flat = np.frombuffer(raw, kind).astype(np.float64)
    return flat.reshape(sides, order="F" if fortran else "C")


def _sides(shape: Any) -> Iterator[int]:
    for side in shape:
        if not isinstance(side, int) or side < 0:
            raise _Refused("it has an array of an impossible shape")
        yield side
