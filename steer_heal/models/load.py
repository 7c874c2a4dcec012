"""Load a model, ready to be steered: eval mode, no gradients, its blocks and its chat encoding at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import httpx2
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..config import SettingsError
from ..records import ModelInfo, SamplingDefaults
from .blocks import find_blocks
from .chat import ChatEncoder, Message
from .files import GIB, check_memory, check_tokenizer, check_whole, download, needed, no_tokenizer
from .find import Source, find
from .placement import best_device, chosen_dtype, parameters, runs_on, spread
from .sampling import Answers, of_files, of_transformers


def _without_gaps(_head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The last positions alone are a slice with gaps, for which torch 2.13 copies the head's whole bfloat16
    weight, once a row, before it multiplies: seconds where the product takes milliseconds."""
    return (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])


class LanguageModel:
    """A causal language model with its tokenizer: eval mode, no parameter asks for a gradient."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        is_demo: bool = False,
        answers: Answers | None = None,
    ) -> None:
        """`answers`: what its file says of them; what transformers holds of that when none.

        Errors: `SettingsError` when there is no chat template or no decoder block is found.
        """
        self.name = name
        self.tokenizer = tokenizer
        self.chat = ChatEncoder(tokenizer, name)
        self.blocks: list[nn.Module] = find_blocks(model)
        self.model = model.eval().requires_grad_(False)
        head: Any = model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(_without_gaps)
        self.config: PreTrainedConfig = model.config.get_text_config(decoder=True)
        self.is_demo = is_demo
        self._said = answers

    @property
    def device(self) -> torch.device:
        """Where input ids go."""
        return runs_on(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def width(self) -> int:
        return self.config.hidden_size

    @cached_property
    def _answers(self) -> Answers:
        return self._said or of_transformers(self.name, self.model)

    @property
    def sampling(self) -> SamplingDefaults:
        """How answers are drawn unless a request says otherwise."""
        return self._answers.sampling

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """What ends an answer: the generation settings', the tokenizer's, the template's end of turn."""
        ends: tuple[Any, ...] = (self.tokenizer.eos_token_id, self.chat.end_of_turn)
        return frozenset((*self._answers.eos_ids, *(token for token in ends if token is not None)))

    @cached_property
    def pad_id(self) -> int:
        pad: Any = self.tokenizer.pad_token_id
        return pad if pad is not None else min(self.eos_ids, default=0)

    @cached_property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name=self.name,
            architecture=type(self.model).__name__,
            n_layers=self.n_layers,
            width=self.width,
            n_parameters=self.model.num_parameters(),
            dtype=str(self.dtype).removeprefix("torch."),
            device="several" if spread(self.model) else str(self.device),
            is_demo=self.is_demo,
            note="Small model trained for this project, not Gemma." if self.is_demo else "",
            sampling=self.sampling,
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of names, shapes and a sample of the weights: what caches are keyed by."""
        digest = hashlib.sha256(self.name.encode())
        for path, parameter in parameters(self.model):
            flat = parameter.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 64)].float().cpu()
            digest.update(f"{path}{tuple(parameter.shape)}{parameter.dtype}".encode())
            digest.update(sample.numpy().tobytes())
        return digest.hexdigest()[:24]

    def encode_chat(self, messages: Sequence[Message], prefill: str = "") -> list[int]:
        """Ids of the turns, the model's turn tag and `prefill`; a content never becomes a control token."""
        return self.chat.encode(messages, prefill)

    def encode_chats(self, chats: Sequence[Sequence[Message]], prefill: str = "") -> list[list[int]]:
        """`encode_chat` of each, in less time."""
        return self.chat.encode_all(chats, prefill)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens left out."""
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


def load(
    name: str,
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] | None = None,
) -> LanguageModel:
    """The model `name` (see `find`) from safetensors, never pickle; no code of a repository unless asked.

    `device`: the accelerator when none and there is one, "auto" spreads over several (also when none, where
    one is too small). `dtype`: the checkpoint's own when none, but float32 for the demo, bfloat16 for float32
    files on an accelerator, and float32 for float16 files on a CPU. `progress` hears what is being done, in
    words. Errors: `SettingsError`, one sentence each.
    """
    source = find(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        folder = source.path or download(source.name, progress)
        config = AutoConfig.from_pretrained(folder, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        check_tokenizer(name, folder, tokenizer.vocab_files_names.values())
        wanted = chosen_dtype(dtype, config, source, device)
        device = device or best_device(folder, wanted)
        check_memory(source.name, folder, device, wanted)
        answers, plainly = of_files(name, folder, config)
        if progress:
            progress(f"reading {needed(folder, wanted) / GIB:.1f} GiB of weights onto {device}")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=wanted,
            device_map=device,
            use_safetensors=True,
            output_loading_info=True,
            generation_config=plainly,
            **options,
        )
        model, found = loaded
        check_whole(name, found["missing_keys"])
    except SettingsError:
        raise
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, httpx2.HTTPError) as error:
        raise SettingsError(_explain(source, error)) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise SettingsError(
            f"{name} does not fit into the memory of {device}: choose a smaller model."
        ) from error
    answers = answers or of_transformers(name, model)
    return LanguageModel(name, model, tokenizer, is_demo=source.kind == "demo", answers=answers)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain(source: Source, error: Exception) -> str:
    """One sentence on why `source` cannot be loaded and what to do."""
    name, text = source.name, str(error)
    causes = list(_causes(error))
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"{name} is gated: accept its licence at huggingface.co/{name}, then run `hf auth login`."
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"The hub has no model {name}: check the spelling, or run `hf auth login` if it is private."
    if any(isinstance(cause, IncompleteSnapshotError) for cause in causes):
        return f"{name} is here only in part and the hub cannot be reached: go online and start again."
    offline = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, httpx2.ConnectError)
    if source.kind == "hub" and any(isinstance(cause, offline) for cause in causes):
        return f"{name} is not on this machine and the hub cannot be reached: go online, or give a folder."
    broken = any(isinstance(cause, httpx2.HTTPError) for cause in causes) or "onsistency check" in text
    if source.kind == "hub" and broken:
        return f"The download of {name} broke off ({_first_line(error)}): start again, it goes on from there."
    if isinstance(error, ImportError) and "bitsandbytes" in text:
        return (
            f"{name} is quantised with bitsandbytes, which is not installed: run `pip install bitsandbytes`."
        )
    if "backend tokenizer" in text:
        return no_tokenizer(name)
    if "custom code" in text or "trust_remote_code" in text:
        return f"{name} needs code from its own repository: read it, then allow it with trust_remote_code."
    if "does not recognize this architecture" in text or "Unrecognized" in text:
        return f"The architecture of {name} is unknown to transformers: choose another causal language model."
    return f"{name} could not be loaded: {_first_line(error)}."


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
