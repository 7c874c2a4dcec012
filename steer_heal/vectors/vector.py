"""Steering vectors: extract, add, scale, compare, save, load."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from steer_heal.config import ExtractSettings, SettingsError, decided_method
from steer_heal.data import check_replies
from steer_heal.models import LanguageModel, left_pad, system, user
from steer_heal.records import Trait
from steer_heal.vectors.methods import method
from steer_heal.vectors.steering import Operator

Progress = Callable[[int, int], None]
FORMAT = "steer_heal.vector.1"
VERSION = 1
"""To be raised by hand with every change of what `extract` gives: no older vector is then found again."""
_TENSORS = {"directions": 2, "norms": 1, "residual_norms": 1}


@dataclass(frozen=True)
class SteeringVector:
    """What is added at each layer for a coefficient of 1.

    `directions_LD`: float32, of unit length unless `meta` says "normalized": "no"; a layer that has none
    holds zeros. `norms_L`: the directions' lengths as extracted. `residual_norms_L`: mean length of the
    residual where they were taken. `meta`: where it comes from. `operator`: what steers instead, for a method
    that adds no one direction.
    """

    directions_LD: Tensor
    norms_L: Tensor
    residual_norms_L: Tensor
    meta: dict[str, str] = field(default_factory=dict)
    operator: Operator | None = None

    @property
    def steers(self) -> Tensor | Operator:
        """What the coefficient matrix multiplies."""
        return self.directions_LD if self.operator is None else self.operator

    @property
    def n_layers(self) -> int:
        return len(self.directions_LD)


def extract(
    lm: LanguageModel,
    trait: Trait,
    contexts: Sequence[str],
    settings: ExtractSettings,
    *,
    progress: Progress | None = None,
) -> SteeringVector:
    """The method's direction from the residuals of the trait's two poles, then unit length unless the method
    keeps its own.

    h[l] is the output of block l. By persona: at the last prompt token, the model-turn tag, under the
    positive and the negative persona as system prompt, over the first `n_contexts` contexts. By replies: see
    `reply_residuals`; `contexts` is not used. Sums are float64. Methods and their sources: `methods.METHODS`.
    Errors: `SettingsError` without contexts, for an unknown method, for a trait without replies where they
    are asked for, or when both poles give the same residuals.
    """
    how = method(decided_method(settings.method, lm.name, replies=trait.by_replies))
    meta = {"model": lm.name, "trait": trait.name, "method": how.name}
    if how.of_replies:
        sides = reply_residuals(lm, trait, progress)
        meta |= {"scenes": str(len(trait.scenes)), "pairs": str(len(trait.replies))}
    else:
        # What remains of two equal ones is rounding, which some kernels leave and others do not.
        if trait.positive == trait.negative:
            raise SettingsError(f"Both personas of {trait.name!r} are the same: use poles that differ.")
        prompts = persona_prompts(lm, trait, contexts, settings)
        half = len(prompts) // 2
        sides = last_residuals(lm, prompts, settings.batch_size, progress).split(half)
        meta |= {"contexts": str(half), "positive": trait.positive, "negative": trait.negative}
    meta["normalized"] = "yes" if how.unit else "no"
    return made(how.direction(*sides), torch.cat(sides).norm(dim=-1).mean(dim=0), meta)


def persona_prompts(
    lm: LanguageModel, trait: Trait, contexts: Sequence[str], settings: ExtractSettings
) -> list[list[int]]:
    """The first `n_contexts` contexts under the positive persona, then the same under the negative one.
    Errors: `SettingsError` without contexts."""
    chosen = list(contexts)[: settings.n_contexts]
    if not chosen:
        raise SettingsError("There are no contexts to extract a vector from: give at least one.")
    poles = (trait.positive, trait.negative)
    return [lm.encode_chat([system(pole), user(context)]) for pole in poles for context in chosen]


def last_residuals(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], batch_size: int, progress: Progress | None = None
) -> Tensor:
    """Output of every block at each prompt's last token: (N, L, D), float64, on the CPU."""
    residuals_NLD = torch.empty(len(prompts), lm.n_layers, lm.width, dtype=torch.float64)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(prompts), batch_size):
        rows = by_length[start : start + batch_size]
        batch = left_pad([prompts[row] for row in rows], lm.pad_id, lm.device)
        last = of_blocks(lm, lambda hidden_BTD: hidden_BTD[:, -1].double().cpu(), **batch.inputs)
        residuals_NLD[rows] = last
        if progress:
            progress(min(start + batch_size, len(prompts)), len(prompts))
    return residuals_NLD


def reply_residuals(
    lm: LanguageModel, trait: Trait, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """Output of every block averaged over the tokens of a reply, after every scene: (N, L, D) for what the
    trait's positive pole would say and for what its negative one would, float64, on the CPU.

    Row n of both is of the same scene and pair, scene by scene. Errors: `SettingsError` without replies.
    """
    check_replies(trait)
    replies = [pair[side] for side in (0, 1) for pair in trait.replies]
    if any(map(lm.chat.holds_control, replies)):
        raise SettingsError(f"A reply of {trait.name!r} holds a control token of {lm.name}: take it out.")
    of_scenes = []
    for done, scene in enumerate(trait.scenes, 1):
        prompt = lm.encode_chat([user(scene)])
        whole = [lm.encode_chat([user(scene)], reply) for reply in replies]
        of_scenes.append(_reply_residuals_of(prompt, whole, lm))
        if progress:
            progress(done * len(replies), len(trait.scenes) * len(replies))
    positive_SNLD, negative_SNLD = torch.stack(of_scenes).split(len(trait.replies), dim=1)
    return positive_SNLD.flatten(0, 1), negative_SNLD.flatten(0, 1)


@torch.inference_mode()
def _reply_residuals_of(prompt: Sequence[int], whole: Sequence[Sequence[int]], lm: LanguageModel) -> Tensor:
    """Means over what each row of `whole` has beyond the prompt, (N, L, D); what all share is read once."""
    columns = zip(prompt, *whole, strict=False)
    shared = next((place for place, ids in enumerate(columns) if len(set(ids)) > 1), len(prompt))
    replies = [list(ids[shared:]) for ids in whole]
    lengths_N1 = torch.tensor([[len(ids)] for ids in replies])
    longest = int(lengths_N1.max())
    # padding stands behind the text, so causal attention alone keeps it out
    ids_NT = torch.tensor([ids + [lm.pad_id] * (longest - len(ids)) for ids in replies], device=lm.device)
    weights_N1T = ((torch.arange(longest) < lengths_N1).double() / lengths_N1)[:, None]
    start_1T = torch.tensor([list(prompt[:shared])], device=lm.device)
    cache = lm.model(input_ids=start_1T, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(len(whole))

    def mean(hidden_NTD: Tensor) -> Tensor:
        return (weights_N1T @ hidden_NTD.double().cpu())[:, 0]

    return of_blocks(lm, mean, input_ids=ids_NT, past_key_values=cache, use_cache=True)


@torch.inference_mode()
def of_blocks(lm: LanguageModel, reduce: Callable[[Tensor], Tensor], **inputs: Any) -> Tensor:
    """What `reduce` makes, (B, D), of the output of every block in one forward pass: (B, L, D)."""
    taken: list[Tensor] = []

    def take(_block: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        taken.append(reduce(output[0] if isinstance(output, tuple) else output))

    with ExitStack() as hooks:
        for block in lm.blocks:
            hooks.callback(block.register_forward_hook(take).remove)
        lm.model(**{"use_cache": False, **inputs}, logits_to_keep=1)
    return torch.stack(taken, dim=1)


def made(vector_LD: Tensor, residual_norms_L: Tensor, meta: dict[str, str]) -> SteeringVector:
    """The vector of these directions, unit length unless `meta` says not. Errors: `SettingsError`."""
    norms_L = vector_LD.double().norm(dim=-1)
    if not torch.isfinite(norms_L).all() or (norms_L == 0).any():
        raise SettingsError("The steering vector is zero or not finite: use poles that differ.")
    raw = meta.get("normalized") == "no"
    directions_LD = (vector_LD if raw else vector_LD.double() / norms_L[:, None]).float()
    return SteeringVector(directions_LD, norms_L.float(), residual_norms_L.float(), meta)


def cosine(a: SteeringVector, b: SteeringVector, layers: Sequence[int]) -> float:
    """Mean over `layers` of the cosine between the two directions."""
    if a.directions_LD.shape != b.directions_LD.shape:
        raise SettingsError("The two vectors are of different models: extract both from one.")
    both_L = functional.cosine_similarity(a.directions_LD, b.directions_LD, dim=-1)
    return float(both_L[list(layers)].mean())


def save(vector: SteeringVector, path: str | Path) -> Path:
    """Write the vector as safetensors with its origin as metadata; the folder is made."""
    if vector.operator is not None:
        raise SettingsError(f"The method {vector.meta.get('method')} keeps no one direction a layer to save.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "directions": vector.directions_LD,
        "norms": vector.norms_L,
        "residual_norms": vector.residual_norms_L,
    }
    save_file(
        {name: tensor.float().contiguous() for name, tensor in tensors.items()},
        path,
        metadata={**vector.meta, "format": FORMAT},
    )
    path.chmod(0o644)
    return path


def load(path: str | Path) -> SteeringVector:
    """Read a vector that `save` wrote. Errors: `SettingsError` when it is not one, or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SettingsError(
            f"{path} is not a readable safetensors file: give a vector saved here."
        ) from error
    if meta.pop("format", None) != FORMAT or set(tensors) != set(_TENSORS):
        raise SettingsError(f"{path} holds no steering vector: give a file that `vector --out` wrote.")
    vector = SteeringVector(tensors["directions"], tensors["norms"], tensors["residual_norms"], meta)
    shapes_fit = all(tensors[name].ndim == ndim for name, ndim in _TENSORS.items()) and (
        len(vector.directions_LD) == len(vector.norms_L) == len(vector.residual_norms_L) > 0
    )
    floats = all(tensor.dtype == torch.float32 for tensor in tensors.values())
    if not shapes_fit or not floats or not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise SettingsError(f"{path} is damaged (shapes or numbers do not fit): extract the vector again.")
    return vector
