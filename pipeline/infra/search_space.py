"""Search spaces as text: `methods.st_adapter.lr=loguniform(1e-4,1e-2)`. Parsed, never evaluated."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import yaml

from pipeline.infra.console import console
from vidpipe.config.messages import nearest
from vidpipe.config.overlay import deep_merge, parse_override
from vidpipe.config.section import NotDecisive, Place, SetBySearch, mark
from vidpipe.config.yaml_text import parse_yaml
from vidpipe.errors import VidpipeError
from vidpipe.methods.config import CONFIGS
from vidpipe.params import STAGES, Params, parse_params

ALGORITHMS = ("random", "optuna")
KINDS = {
    "choice": "choice(0.125,0.25,0.5)",
    "loguniform": "loguniform(1e-4,1e-2)",
    "uniform": "uniform(0,0.3)",
    "randint": "randint(1,5)",
}


@dataclass(frozen=True)
class Domain:
    """The values of one parameter: `choice` of YAML texts, or a range (`randint` excludes its end)."""

    kind: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0

    def probes(self) -> list[str]:
        """Values that show whether the parameter accepts them: all choices, or both ends."""
        if self.kind == "choice":
            return list(self.choices)
        high = self.high - 1 if self.kind == "randint" else self.high
        return [as_text(self._number(value)) for value in dict.fromkeys((self.low, high))]

    def _number(self, value: float) -> float | int:
        return int(value) if self.kind == "randint" else value


Space = dict[str, Domain]


def as_text(value: str | float) -> str:
    """A sampled value as `--set` takes it, with four significant digits: what is printed is what was
    trained."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def overrides(sampled: Mapping[str, str | float]) -> list[str]:
    """What one trial sampled, as texts of `--set`."""
    return [f"{key}={as_text(value)}" for key, value in sampled.items()]


def parse_space(texts: Sequence[str]) -> Space:
    """Key -> domain. Raises VidpipeError with the text that is wrong and an example."""
    space: Space = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not all(re.fullmatch(r"\w+", part) for part in key.split(".")):
            raise VidpipeError(
                f"--space {text}: expected key=domain, such as methods.aim.lr={KINDS['loguniform']}"
            )
        if key in space:
            raise VidpipeError(f"--space {text}: {key} is given twice")
        space[key] = _parse_domain(text, value.strip())
    return space


def _parse_domain(text: str, value: str) -> Domain:
    call = re.fullmatch(r"(\w+)\s*\((.*)\)", value, re.DOTALL)
    if call is None:
        raise VidpipeError(f"--space {text}: expected one of {', '.join(KINDS.values())}")
    kind, inside = call.groups()
    if kind not in KINDS:
        raise VidpipeError(f"--space {text}: no such domain: {kind}{nearest(kind, KINDS)}")
    if kind == "choice":
        return Domain(kind, choices=_choices(text, inside))
    try:
        low, high = (float(part) for part in inside.split(","))
    except ValueError:
        raise VidpipeError(f"--space {text}: expected two numbers, such as {KINDS[kind]}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise VidpipeError(f"--space {text}: expected the smaller number first, both finite")
    if kind == "loguniform" and low <= 0:
        raise VidpipeError(f"--space {text}: loguniform needs numbers above 0")
    if kind == "randint" and not (low.is_integer() and high.is_integer()):
        raise VidpipeError(f"--space {text}: randint needs whole numbers; it excludes the second")
    return Domain(kind, low=low, high=high)


def _choices(text: str, inside: str) -> tuple[str, ...]:
    """YAML values, separated by commas: lists and mappings in flow style are single values."""
    texts = tuple(_yaml_text(v) for v in parse_yaml(f"[{inside}]", f"--space {text[:200]}"))
    if not texts:
        raise VidpipeError(f"--space {text}: nothing to choose from")
    return texts


def _yaml_text(value: Any) -> str:
    """One line that YAML reads as `value`; 1e-5 as 1.0e-05, which stays a number."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    text = text.removesuffix("...").strip()
    return json.dumps(value) if "\n" in text else text


def resolve(raw: Mapping[str, Any], sets: Sequence[str], epochs: int | None = None) -> Params:
    """`raw` params with `--set` texts on top, as a trial of `epochs` epochs trains them.

    The warm-up keeps its share of the training. Raises VidpipeError as `load_params` does.
    """
    for text in sets:
        raw = deep_merge(raw, parse_override(text))
    params = parse_params(raw)
    if epochs is None:
        return params
    train = params.train.model_dump() | {
        "epochs": epochs,
        "steps": None,
        "warmup_epochs": params.train.warmup_epochs * epochs / params.train.epochs,
        "eval_every": 1,
        "num_workers": 0,
    }
    return parse_params({**params.model_dump(), "train": train})


def check_space(space: Space, raw: Mapping[str, Any], method: str) -> list[str]:
    """Refuse, before anything starts, keys that do not exist or do not change this training.

    Returns one line for every value that is refused by itself: its trials will fail. Raises
    VidpipeError when no value of a key is possible.
    """
    resolve(raw, [])
    warnings = []
    for key, domain in space.items():
        problems = []
        for value in domain.probes():
            try:
                resolve(raw, [f"{key}={value}"])
            except VidpipeError as error:
                problems.append(f"{key}={value}: {error}")
        if len(problems) == len(domain.probes()):
            raise VidpipeError(f"--space {problems[0]}")
        warnings += problems
        if refusal := _not_searched(key, method):
            raise VidpipeError(f"--space {key}: {refusal}")
    return warnings


def _not_searched(key: str, method: str) -> str | None:
    """Why the existing parameter `key` is no part of a search over `method`'s training, if so."""
    useless = f"does not change the training of {method}"
    section, *names = key.split(".")
    if section not in STAGES["train"] or (section == "methods" and names.pop(0) != method):
        return useless
    model: Any = Params.model_fields[section].annotation
    model = CONFIGS[method] if section == "methods" else model
    field = model.model_fields[names[0]] if names else Params.model_fields[section]
    if found := mark(field, SetBySearch):
        return f"a search sets it itself: {found.why}"
    free = mark(field, NotDecisive)
    return useless if free is not None and not isinstance(free, Place) else None


def checked_texts(
    raw: Mapping[str, Any], method: str, texts: Sequence[str], algorithm: str
) -> list[str]:
    """`texts`, or the method's own space, once everything about the search is possible.

    Raises VidpipeError. Needs neither torch nor Ray: a typo is answered before they are imported.
    """
    if not CONFIGS[method].space:
        raise VidpipeError(f"method {method}: it trains nothing, so there is nothing to search")
    used = list(texts) or default_space(method)
    for warning in check_space(parse_space(used), raw, method):
        console.print(f"trials with this value will fail: {warning}")
    if algorithm not in ALGORITHMS:
        raise VidpipeError(f"--search {algorithm}: expected {' or '.join(ALGORITHMS)}")
    if algorithm == "optuna" and find_spec("optuna") is None:
        raise VidpipeError(
            "--search optuna: optuna is not installed; pip install 'vidpipe[search]'"
        )
    return used


def default_space(method: str) -> list[str]:
    """What the method's own file says is worth searching."""
    config = CONFIGS[method]
    return [f"methods.{method}.{key}={domain}" for key, domain in config.space.items()]
