"""Determinism holds within a training, refuses what cannot keep it, and ends with it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.utils.deterministic
from hypothesis import given
from hypothesis import strategies as st

from vidpipe.device import CUBLAS, set_determinism
from vidpipe.errors import VidpipeError


def state() -> dict[str, Any]:
    return {
        "enabled": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "cublas": os.environ.get(CUBLAS),
    }


WITHIN = {
    **{"enabled": True, "warn_only": False, "cudnn": (True, False), "fill": False},
    "cublas": ":4096:8",
}


@given(
    flags=st.tuples(*[st.booleans()] * 5),
    cublas=st.sampled_from([None, ":16:8"]),
    error=st.sampled_from([None, ValueError, VidpipeError]),
)
def test_all_is_afterwards_as_it_was(
    flags: tuple[bool, ...], cublas: str | None, error: type[Exception] | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "deterministic", flags[0])
        patch.setattr(torch.backends.cudnn, "benchmark", flags[1])
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", flags[2])
        patch.delenv(CUBLAS, raising=False)
        if cublas is not None:
            patch.setenv(CUBLAS, cublas)
        torch.use_deterministic_algorithms(flags[3], warn_only=flags[4])
        try:
            before = state()
            try:
                with set_determinism():
                    assert state() == WITHIN
                    if error is not None:
                        raise error("ends a training")
            except Exception as raised:
                assert type(raised) is error  # noqa: PT017
            assert state() == before
            with set_determinism(False):
                assert state() == before
        finally:
            torch.use_deterministic_algorithms(False)


def test_an_operation_that_has_no_deterministic_form_is_refused_in_one_line() -> None:
    x, index = torch.zeros(3), torch.tensor([0, 0])
    with (
        pytest.raises(VidpipeError, match="deterministic: put_ has no deterministic") as found,
        set_determinism(),
    ):
        x.put_(index, torch.tensor([1.0, 2.0]))
    assert "\n" not in str(found.value)
    x.put_(index, torch.tensor([1.0, 2.0]))
    with pytest.raises(RuntimeError, match="something else"), set_determinism():
        raise RuntimeError("something else")
