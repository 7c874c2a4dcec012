"""Several vectors at once: where the expression of a mix becomes directions and coefficients."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from steer_heal.config import Mix, SettingsError, Term
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.vectors.steering import Directions, Operator
from steer_heal.vectors.vector import SteeringVector, cosine

PARALLEL = 0.98
"""Two vectors whose cosine is larger are as good as one."""
LEAST_LEFT = 1e-3
"""What vectors that cancel each other leave, as a share of what they add."""


@dataclass(frozen=True)
class MixedVector:
    """What `CalibratedVector` is of one vector: `steers` has the directions (M, L, D) of the mix's terms, and
    `unit_LM` their coefficients at alpha 1.

    `added`: the length of what is added at alpha 1, the mean over layers, beside the residual's. `message`:
    what there is to say of it. `swept`: the KL found at alphas, nats at the 95th percentile; nothing is known
    between them.
    """

    steers: Tensor | Operator
    layers: tuple[int, ...]
    unit_LM: Tensor
    added: float
    residual_norms_L: Tensor
    message: str = ""
    swept: dict[float, float] = field(default_factory=dict)
    c_star: None = None

    def coefficients_RL(self, *alphas: float) -> Tensor:
        """A row of coefficients for each alpha, (R, L, M)."""
        return torch.stack([alpha * self.unit_LM for alpha in alphas])

    def nats(self, alpha: float) -> tuple[float, bool] | None:
        """What alpha costs, where it was measured."""
        known = {0.0: 0.0} | self.swept
        return (known[alpha], False) if alpha in known else None

    def fraction(self, alpha: float) -> float | None:
        """What is added at each layer as a fraction of the residual's length; of what is ablated nothing is
        said."""
        norm = float(self.residual_norms_L[list(self.layers)].mean())
        return abs(alpha) * self.added / norm if self.added and norm else None

    @property
    def one(self) -> SteeringVector | None:
        """What the mix adds as a single vector, of length 1 in the mean over the steered layers; at alpha 1
        the mix adds it `added` times. None where something is ablated."""
        if not isinstance(self.steers, Tensor):
            return None
        added_LD = (self.steers * self.unit_LM.T[..., None]).sum(dim=0)
        norms_L, meta = added_LD.norm(dim=-1), {"normalized": "no"}
        return SteeringVector(added_LD / self.added, norms_L, self.residual_norms_L, meta)


Steered = CalibratedVector | MixedVector
"""What alpha is a dose of."""


def mixed(mix: Mix, of: Mapping[str, CalibratedVector]) -> MixedVector:
    """The mix of these vectors, by the names of their traits, all on the same layers.

    Errors: `SettingsError` for one that adds no direction, for a term of which nothing is left, and where the
    vectors cancel each other.
    """
    for name, one in of.items():
        if one.vector.operator is not None:
            raise SettingsError(
                f"A mix needs vectors that add a direction, which that of {name} does not: choose another "
                "method."
            )
    some = next(iter(of.values()))
    layers = list(some.layers)
    directions_MLD = torch.stack([_direction(term, of, layers) for term in mix.terms])
    unit_LM = torch.zeros(some.vector.n_layers, len(mix.terms))
    for number, term in enumerate(mix.terms):
        unit_LM[layers, number] = term.weight * (1.0 if term.ablates else of[term.trait].c_star)
    ablated = tuple(term.ablates for term in mix.terms)
    added_MLD = (directions_MLD * unit_LM.T[..., None])[[not one for one in ablated]][:, layers]
    together, apart = added_MLD.sum(dim=0).norm(dim=-1), added_MLD.norm(dim=-1).sum(dim=0)
    if apart.any() and float(together.mean()) <= LEAST_LEFT * float(apart.mean()):
        raise SettingsError(f"The mix {mix} adds nothing, as its vectors cancel: choose other doses.")
    steers = Directions(directions_MLD, ablated) if any(ablated) else directions_MLD
    return MixedVector(
        steers, some.layers, unit_LM, float(together.mean()), some.vector.residual_norms_L,
        _to_say(mix, of, layers),
    )  # fmt: skip


def _direction(term: Term, of: Mapping[str, CalibratedVector], layers: list[int]) -> Tensor:
    """(L, D): the trait's own, or the part of it that is orthogonal to another's, v - (v . u) u."""
    own_LD = of[term.trait].vector.directions_LD
    if not term.without:
        return own_LD
    unit_LD = torch.nn.functional.normalize(of[term.without].vector.directions_LD, dim=-1)
    left_LD = own_LD - (own_LD * unit_LD).sum(dim=-1, keepdim=True) * unit_LD
    share = float((left_LD[layers].norm(dim=-1) / own_LD[layers].norm(dim=-1)).mean())
    if share < (1.0 - PARALLEL**2) ** 0.5:
        raise SettingsError(
            f"{term.trait} without {term.without} leaves {share:.0%} of it, as the two are parallel: name "
            "another trait."
        )
    return left_LD


def _to_say(mix: Mix, of: Mapping[str, CalibratedVector], layers: list[int]) -> str:
    """Which c* was not reached, else which two vectors are as good as one."""
    for one in of.values():
        if one.message:
            return one.message
    for one, other in combinations(mix.traits, 2):
        alike = cosine(of[one].vector, of[other].vector, layers)
        if abs(alike) > PARALLEL:
            return f"{one} and {other} are parallel (cosine {alike:.2f}): together they act as one vector."
    return ""
