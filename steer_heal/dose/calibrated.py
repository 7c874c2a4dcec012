"""A vector with its c*: where alpha becomes the numbers that are added."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from steer_heal.records import Calibration
from steer_heal.vectors.steering import Operator, coefficients
from steer_heal.vectors.vector import SteeringVector


@dataclass(frozen=True)
class CalibratedVector:
    """Directions, the layers they are added to, and the c* that alpha is in units of.

    Here, and nowhere else, alpha becomes the coefficients that a forward pass takes. `swept`: what sweeps
    found alphas to cost, nats at the 95th percentile; they add to it.
    """

    vector: SteeringVector
    layers: tuple[int, ...]
    calibration: Calibration
    swept: dict[float, float] = field(default_factory=dict)

    @property
    def steers(self) -> Tensor | Operator:
        """What the coefficients multiply."""
        return self.vector.steers

    @property
    def c_star(self) -> float:
        return self.calibration.c_star

    @property
    def message(self) -> str:
        return self.calibration.message

    def coefficients_RL(self, *alphas: float) -> Tensor:
        """A row of coefficients for each alpha, (R, L): alpha * c* on the steered layers, 0 on the others."""
        c_star, n_layers = self.calibration.c_star, self.vector.n_layers
        return torch.cat([coefficients(n_layers, self.layers, alpha * c_star) for alpha in alphas])

    def nats(self, alpha: float) -> tuple[float, bool] | None:
        """About what alpha costs in KL(steered || base) at the 95th percentile, between two measured doses.

        Beyond the last one what that costs, and True: it is more than that. None where doses of this sign
        were not measured. What the calibration measured counts before what sweeps did.
        """
        c_star = self.calibration.c_star
        here, swept = alpha * c_star, {at * c_star: kl for at, kl in self.swept.items()}
        known = {0.0: 0.0} | swept | dict(self.calibration.history)
        side = sorted((abs(c), kl) for c, kl in known.items() if c == 0.0 or (c > 0.0) == (here > 0.0))
        if here == 0.0:
            return 0.0, False
        if len(side) == 1:
            return None
        for (low, at_low), (high, at_high) in pairwise(side):
            if abs(here) <= high:
                return at_low + (at_high - at_low) * (abs(here) - low) / (high - low), False
        return max(kl for _, kl in side), True

    def fraction(self, alpha: float) -> float | None:
        """What is added at each layer as a fraction of the residual's length."""
        norm = self.calibration.residual_norm
        return abs(alpha) * self.calibration.c_star / norm if norm else None
