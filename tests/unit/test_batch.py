"""How many rows go through the same passes."""

from __future__ import annotations

import pytest

from steer_heal.models import batch, rows_that_fit
from tests import tiny


@pytest.mark.parametrize("arch", ["gemma3", "llama", "qwen3"])
def test_rows_follow_the_free_memory(arch, monkeypatch):
    lm = tiny.language_model(arch=arch)

    def fit(free: int, n_tokens: int = 100) -> int:
        monkeypatch.setattr(batch, "free", lambda _: free)
        return rows_that_fit(lm, n_tokens, 64)

    assert fit(0) == 1
    assert fit(2**40) == 64
    some = fit(10_000_000)
    assert 1 < some < 64
    assert fit(20_000_000) in {2 * some, 2 * some + 1}
    assert fit(10_000_000, 400) < some
