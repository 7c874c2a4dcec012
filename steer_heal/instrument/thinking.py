"""A greedy thought of a fixed length and, in the same cache, what is read after it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from steer_heal.generate.prefill import prefill
from steer_heal.generate.rows import Lane
from steer_heal.models import LanguageModel
from steer_heal.vectors.steering import Operator, steering_of


@torch.inference_mode()
def think_then_read(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    after: Sequence[int],
    n_thought: int,
    avoid: Collection[int],
    n_logits: int,
    directions_LD: Tensor | Operator,
    coefficients_BL: Tensor,
) -> Tensor:
    """Logits (B, n_logits, V) at the last positions of prompt + thought + `after`, under each row's steering.

    The thought is `n_thought` tokens, each the likeliest but `avoid`. Rows do not depend on one another.
    """
    lanes = [Lane(tuple(prompt), row_L.cpu()) for prompt, row_L in zip(prompts, coefficients_BL, strict=True)]
    state = prefill(lm, lanes, directions_LD, n_thought + len(after))
    steering = steering_of(directions_LD, coefficients_BL)
    positions_B, mask_BT = state.positions_B, state.mask_BT

    def forward(ids_BT: Tensor, keep: int) -> Tensor:
        nonlocal positions_B, mask_BT
        if mask_BT is not None:
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(ids_BT.shape)], dim=1)
        steps_T = torch.arange(ids_BT.shape[1], device=positions_B.device)
        with steering.attached(lm.blocks):
            output = lm.model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=positions_B[:, None] + steps_T,
                past_key_values=state.cache,
                use_cache=True,
                logits_to_keep=keep,
            )
        positions_B = positions_B + len(steps_T)
        return output.logits

    logits_BV = state.logits_BV
    never = torch.tensor(sorted(avoid), device=logits_BV.device, dtype=torch.long)
    for _ in range(n_thought):
        ids_B = logits_BV.float().index_fill(1, never, -torch.inf).argmax(dim=-1)
        logits_BV = forward(ids_B[:, None].to(lm.device), 1)[:, -1]
    return forward(torch.tensor([list(after)] * len(lanes), device=lm.device), n_logits)
