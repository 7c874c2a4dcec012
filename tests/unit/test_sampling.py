import pytest
import torch

from steer_heal.config import SampleSettings
from steer_heal.generate.sampling import Sampler, exponential, sampler, stream
from steer_heal.models import SamplingDefaults

LOGITS = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0, -40.0])


def frequencies(how: Sampler, logits_V: torch.Tensor, n: int = 6000) -> torch.Tensor:
    """Shares of the tokens over n independent draws (as noise ids)."""
    drawn = how.draw(logits_V.expand(n, -1), list(range(n)), step=0)
    return torch.bincount(drawn, minlength=len(logits_V)) / n


def reference(temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Filtered probabilities, token by token: temperature, then top-k, then the least set of mass top-p."""
    p = (LOGITS / temperature).softmax(-1)
    kept = p.sort(descending=True).indices[: top_k or len(p)].tolist()
    p = torch.where(torch.tensor([i in kept for i in range(len(p))]), p, 0.0)
    p = p / p.sum()
    mass, chosen = 0.0, []
    for index in p.sort(descending=True).indices.tolist():
        if mass >= top_p:
            break
        chosen.append(index)
        mass += float(p[index])
    p = torch.where(torch.tensor([i in chosen for i in range(len(p))]), p, 0.0)
    return p / p.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (2.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.8), (0.7, 4, 0.9), (1.5, 0, 0.999999)],
)
def test_tokens_are_drawn_as_the_filtered_softmax_says(temperature, top_k, top_p):
    found = frequencies(Sampler(False, temperature, top_k, top_p, seed=1), LOGITS)
    expected = reference(temperature, top_k, top_p)
    assert (found - expected).abs().max() < 0.025
    assert not found[expected == 0].any()


def test_top_p_reaches_beyond_the_first_candidates():
    """A flat vocabulary larger than the first look, where top-p keeps nearly all of it."""
    how = Sampler(False, 1.0, 0, 0.99, seed=0)
    drawn = how.draw(torch.zeros(400, 5000), list(range(400)), step=0)
    assert len(drawn.unique()) > 350


def test_rows_of_one_noise_id_draw_alike_and_others_do_not():
    how = Sampler(False, 1.0, 0, 1.0, seed=3)
    drawn = how.draw(torch.zeros(3, 1000), [7, 7, 8], step=2)
    assert drawn[0] == drawn[1] != drawn[2]
    assert how.draw(torch.zeros(1, 1000), [8], step=2)[0] == drawn[2]
    assert how.draw(torch.zeros(1, 1000), [8], step=3)[0] != drawn[2]
    assert Sampler(False, 1.0, 0, 1.0, seed=4).draw(torch.zeros(1, 1000), [8], step=2)[0] != drawn[2]


def test_noise_is_exponential_and_other_for_every_stream():
    streams = torch.tensor([stream(*source) for source in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))])
    many = exponential(streams[:, None], torch.arange(100_000))
    assert (many > 0).all()
    assert many.isfinite().all()
    for row in many:
        assert row.mean() == pytest.approx(1.0, abs=0.02)
        assert row.var() == pytest.approx(1.0, abs=0.05)
    assert (torch.corrcoef(many) - torch.eye(4)).abs().max() < 0.02
    assert (torch.corrcoef(torch.stack([many[0, :-1], many[0, 1:]]))[0, 1]).abs() < 0.02


def test_a_tokens_noise_is_a_pure_function():
    start, some = torch.tensor(stream(1, 2, 3)), torch.tensor([7, 49_151, 0])
    assert torch.equal(exponential(start, some), exponential(start, torch.arange(49_152))[some])


def test_the_models_own_settings_hold_where_nothing_is_said():
    defaults = SamplingDefaults(temperature=0.6, top_k=64, top_p=0.95)
    assert sampler(SampleSettings(), defaults) == Sampler(False, 0.6, 64, 0.95, 0)
    asked = SampleSettings(temperature=1.0, top_k=0, top_p=1.0, greedy=True, seed=5)
    assert sampler(asked, defaults) == Sampler(True, 1.0, 0, 1.0, 5)
