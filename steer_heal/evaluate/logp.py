"""Log-probs of texts, and of what they would be after other prompts."""

from collections.abc import Callable, Sequence

import torch

from steer_heal import forward
from steer_heal.models import LanguageModel


@torch.inference_mode()
def text_logp(
    lm: LanguageModel,
    prompts_ids: Sequence[Sequence[int]],
    completions_ids: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[list[float]]:
    """Log-prob of every token of each completion after its prompt, under the weights that are active.

    An empty completion gives an empty list. Raises `Stopped` when `stop()` says so.
    """
    found: list[list[float]] = [[] for _ in completions_ids]
    todo = [row for row, ids in enumerate(completions_ids) if ids]
    groups = {prompt: number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts_ids)))}
    asked = [
        forward.Asked((*prompt, *ids), len(ids) + 1, group=groups[prompt])
        for prompt, ids in ((tuple(prompts_ids[row]), completions_ids[row]) for row in todo)
    ]
    done, no_dose_1L = 0, torch.zeros(1, lm.n_layers)
    for numbers, rows in forward.open(lm).read(asked, no_dose_1L, batch_size=batch_size, stop=stop):
        logp, _ = rows.read_out([completions_ids[todo[number]] for number in numbers])
        for number, row in zip(numbers, logp, strict=True):
            found[todo[number]] = row
        done += len(numbers)
        if progress:
            progress(done, len(todo))
    return found
