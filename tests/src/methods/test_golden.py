"""Every method computes what it did when it was proven against the authors' code: in every clone."""

from __future__ import annotations

import pytest
import torch
from golden import CASES, FILE, measured, model_of
from safetensors import safe_open

from vidpipe.training.optim import trained_parameters


@pytest.mark.parametrize("case", list(CASES), ids=str)
def test_logits_gradients_and_steps_are_the_shipped_ones(case: str) -> None:
    with safe_open(FILE, "pt") as shipped:
        names = shipped.metadata()[case].split()
        expected = {k: shipped.get_tensor(f"{case}.{k}") for k in ("logits", "gradients", "losses")}
    assert sorted(trained_parameters(model_of(*CASES[case]))) == names
    found = measured(*CASES[case])
    assert expected["logits"].std() > 0.01
    torch.testing.assert_close(found["logits"], expected["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["losses"], expected["losses"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["gradients"], expected["gradients"], atol=1e-5, rtol=1e-4)


def test_the_file_holds_what_the_methods_are_tested_with() -> None:
    with safe_open(FILE, "pt") as shipped:
        assert set(shipped.metadata()) == set(CASES)
    assert FILE.stat().st_size < 400_000
