from functools import partial

import pytest
import torch
from torch.nn.functional import gelu, rms_norm

from steer_heal.generate.lean import pointwise
from tests.close import rounding

ROWS = {"few": 3, "many": 1100}


@pytest.mark.parametrize("n", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_torch_s_and_leave_what_they_are_given(n, dtype):
    torch.manual_seed(0)
    x, weight_D = (30 * torch.randn(n, 2, 64)).to(dtype), torch.randn(64).to(dtype)
    x[0] = 0
    before = x.clone()
    late = rms_norm(x.float(), (64,), weight_D.float(), 1e-6).to(dtype)
    torch.testing.assert_close(pointwise.norm_late(x, weight_D.float(), 1e-6), late)
    early = weight_D * rms_norm(x.float(), (64,), None, 1e-6).to(dtype)
    torch.testing.assert_close(pointwise.norm_early(x, weight_D, 1e-6), early)
    assert torch.equal(x, before)
    torch.testing.assert_close(pointwise.norm_late_(x, weight_D.float(), 1e-6), late)


@pytest.mark.parametrize("n", [3, 700, 2100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_gelu_is_torch_s_from_end_to_end(n, dtype):
    gate = torch.linspace(-80, 80, n * 64).reshape(n, 64).to(dtype)
    up = torch.randn(n, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = gelu(gate, approximate="tanh") * up
    given, before = gate.clone(), up.clone()
    made = pointwise.gated_gelu(gate, up)
    # Two sums, six products and an exponential, all in float32; of two the results are rounded.
    off = rounding(9 if dtype == torch.float32 else 2, dtype) * (given * up).abs()
    assert ((made - expected).abs() <= off).all()
    assert torch.isfinite(made).all()
    assert torch.equal(up, before)


@pytest.mark.parametrize("n", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_place", [False, True])
def test_sums_go_where_they_are_wanted_and_leave_the_residual(n, dtype, has_place):
    torch.manual_seed(0)
    hidden, x = torch.randn(n, 64).to(dtype), torch.randn(n, 64).to(dtype)
    weight_D, before = torch.randn(64), hidden.clone()
    normed = hidden + pointwise.norm_late(x, weight_D, 1e-6)
    for join, expected in (
        (pointwise.plus, hidden + x),
        (partial(pointwise.plus_norm_late, weight_D=weight_D, eps=1e-6), normed),
    ):
        place, given = torch.empty_like(x) if has_place else None, x.clone()
        made = join(hidden, given, place)
        assert place is None or made is place
        torch.testing.assert_close(made, expected)
        assert torch.equal(hidden, before)
