"""Load a model, ready to be steered: eval mode, no gradients, its blocks and its chat encoding at hand."""

import json
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import httpx2
import tokenizers
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from steer_heal import data
from steer_heal.config import SettingsError, check_text, first_line, one_sentence
from steer_heal.models import identity
from steer_heal.models.blocks import find_blocks
from steer_heal.models.chat import ChatEncoder, Message, user
from steer_heal.models.fetching import obtain
from steer_heal.models.files import (
    GIB,
    check_files,
    check_memory,
    check_tokenizer,
    check_whole,
    needed,
    no_tokenizer,
)
from steer_heal.models.placement import best_device, chosen_dtype, lay_out, runs_on, spread
from steer_heal.models.sampling import Answers, of_files, of_transformers
from steer_heal.records import ModelInfo, SamplingDefaults
from steer_heal.sources import DEMO_FOLDER, KNOWN, Source, find, here

_NO_CODE: dict[str, Any] = {"trust_remote_code": False}
_PADS = 4
"""Tokens of padding with which a model is tried."""


def without_gaps(_head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
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
        weights_hash: str | None = None,
    ) -> None:
        """`answers`: what its file says of them; what transformers holds of that when none. `weights_hash`:
        the hash of the weights as they are, where it is known.

        Errors: `SettingsError` when there is no chat template, or one that changes what is said, when the
        tokenizer is another model's, or when no decoder block is found.
        """
        self.name = name
        self.tokenizer = tokenizer
        self.blocks: list[nn.Module] = find_blocks(model)
        embedding: Any = model.get_input_embeddings()
        self._n_ids: int = embedding.num_embeddings
        self.config: PreTrainedConfig = model.config.get_text_config(decoder=True)
        self.n_positions = _positions(model, self.config)
        self.chat = ChatEncoder(tokenizer, name, self._n_ids, self.n_positions)
        self.chat.check()
        self.model = model.eval().requires_grad_(False)
        head: Any = model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(without_gaps)
        self.is_demo = is_demo
        self.note = f"{KNOWN[name].about}." if name in KNOWN else ""
        self._said = answers
        self._hashed = (None, "") if weights_hash is None else (self.state, weights_hash)

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
        """What fills up a batch: the tokenizer's own where the model has an embedding for it."""
        pad: Any = self.tokenizer.pad_token_id
        return pad if pad is not None and pad < self._n_ids else min(self.eos_ids, default=0)

    @cached_property
    def material(self) -> data.Material:
        """The texts it is asked with: the demo's also for what was made from it, which has its words."""
        words = json.loads((DEMO_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        return data.material(demo=self.is_demo or self.tokenizer.get_vocab().keys() >= words.keys())

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
            note=self.note,
            sampling=self.sampling,
        )

    @property
    def state(self) -> Hashable:
        """Another value once the weights were touched: what is kept in memory is good for one."""
        return identity.touched(self.model)

    @property
    def weights_hash(self) -> str:
        """A hash of all weights as they are now, the same in float32 and in the checkpoint's own bfloat16.

        Reads them once, and again when they were touched.
        """
        if self._hashed[0] != self.state:
            self._hashed = (self.state, identity.weights_hash(self.model))
        return self._hashed[1]

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides what the model says to given messages: weights, their number format,
        config, tokenizer, chat template (one may write the date), what ends an answer. What caches are keyed
        by."""
        config, ends = identity.config_values(self.model.config), sorted(self.eos_ids)
        said = (self._vocabulary, str(self.tokenizer.chat_template), self.encode_chat([user("?")]))
        return identity.digest(self.weights_hash, str(self.dtype), config, ends, *said)

    @cached_property
    def _vocabulary(self) -> str:
        return identity.vocabulary_hash(self.tokenizer)

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


def _positions(model: PreTrainedModel, config: PreTrainedConfig) -> float:
    """How many tokens the model can read at once: as many as its table of positions has rows, two of which
    some reserve; any number without one."""
    most = getattr(config, "max_position_embeddings", None) or 0
    named = (*model.named_parameters(), *model.named_buffers())
    tables = (table for name, table in named if table.ndim == 2 and ("wpe" in name or "pos" in name))
    return most if any(table.shape[0] in (most, most + 2) for table in tables) else math.inf


def load(
    name: str,
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    progress: Callable[[str], None] | None = None,
) -> LanguageModel:
    """The model `name` (see `find`) from safetensors, never pickle; no code of a repository is run.
    What is not here is fetched, and a GGUF file converted once.

    `device`: the accelerator when none and there is one, "auto" spreads over several (also when none, where
    one is too small). `dtype`: the checkpoint's own when none, but bfloat16 for float32 files on an
    accelerator; on a CPU float32 for the demo and for float16 files, and for bfloat16 ones where it has no
    instructions for them and the memory is ample (up to 1.7 times faster there). `progress` hears what is
    being done, in words. Errors: `SettingsError`, one sentence each.
    """
    source = find(name)
    with one_sentence(lambda error: _explain(source, error)):
        check_text(name)
        lm = _loaded(source, device, dtype, progress)
        if not source.pinned:
            _answer(lm)
        return lm


def outline(name: str) -> LanguageModel | None:
    """The model without its weights, as its files describe it; None where they are not on this machine.
    Errors: `SettingsError`."""
    source = find(name)
    folder = here(source)
    if folder is None:
        return None
    with one_sentence(lambda error: _explain(source, error)):
        check_files(folder)
        changed = max(file.stat().st_mtime_ns for file in folder.iterdir())
        return _outline(source, folder, changed)


@lru_cache(maxsize=4)
def _outline(source: Source, folder: Path, _changed: int) -> LanguageModel:
    config = _without_strange_pad(AutoConfig.from_pretrained(folder, **_NO_CODE))
    tokenizer = _always_the_same(AutoTokenizer.from_pretrained(folder, **_NO_CODE))
    check_tokenizer(source.name, folder, tokenizer.vocab_files_names.values())
    model = _empty(config, chosen_dtype(None, config, folder, None))
    return LanguageModel(source.name, model, tokenizer, is_demo=source.kind == "demo", weights_hash="")


def prepare(source: Source, progress: Callable[[str], None] | None = None) -> Path:
    """The folder of the model's files, fetched and converted first where they are not here. `progress` hears
    in words what is being done. Errors: `SettingsError`."""
    with one_sentence(lambda error: _explain(source, error)):
        return obtain(source, progress)


def _loaded(
    source: Source,
    device: str | None,
    dtype: str | torch.dtype | None,
    progress: Callable[[str], None] | None,
) -> LanguageModel:
    name = source.name
    folder = obtain(source, progress)
    check_files(folder)
    config = _without_strange_pad(AutoConfig.from_pretrained(folder, **_NO_CODE))
    tokenizer = _always_the_same(AutoTokenizer.from_pretrained(folder, **_NO_CODE))
    check_tokenizer(name, folder, tokenizer.vocab_files_names.values())
    wanted = chosen_dtype(dtype, config, folder, device)
    device = device or best_device(folder, wanted)
    check_memory(name, folder, device, wanted, described=_described(config, wanted))
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
        ignore_mismatched_sizes=True,  # told by name by `check_whole`
        generation_config=plainly,
        **_NO_CODE,
    )
    model, found = loaded
    unused = check_whole(name, found)
    hashed = identity.weights_hash(model)  # every use asks for it; read faster before they are laid out anew
    lay_out(model)
    answers = answers or of_transformers(name, model)
    lm = LanguageModel(
        name, model, tokenizer, is_demo=source.kind == "demo", answers=answers, weights_hash=hashed
    )
    lm.note = " ".join(filter(None, (lm.note, unused, _check_bos(lm, folder))))
    return lm


def _without_strange_pad(config: PreTrainedConfig) -> PreTrainedConfig:
    """Without a padding token that the embedding lacks, for which transformers cannot make one."""
    text: Any = config.get_text_config(decoder=True)
    if (getattr(text, "pad_token_id", None) or 0) >= getattr(text, "vocab_size", math.inf):
        text.pad_token_id = None
    return config


def _always_the_same(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Without the dropout of merges with which it was trained: a text would have other ids each time."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if getattr(getattr(backend, "model", None), "dropout", None):
        backend.model.dropout = None
    return tokenizer


def _described(config: PreTrainedConfig, dtype: torch.dtype | str) -> int:
    """Bytes of the model that the configuration describes; 0 for a quantised one, whose files are packed."""
    if getattr(config, "quantization_config", None):
        return 0
    return sum(parameter.nbytes for parameter in _empty(config, dtype).parameters())


def _empty(config: PreTrainedConfig, dtype: torch.dtype | str) -> Any:
    """The model that the configuration describes, which holds no weights."""
    stored = dtype if isinstance(dtype, torch.dtype) else config.dtype
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=stored, **_NO_CODE)


def _check_bos(lm: LanguageModel, folder: Path) -> str:
    """A sentence where chats lack the model's BOS and something is amiss: many models have one that their
    chats leave out by design. Errors: `SettingsError` where the file is missing that names it."""
    bos = lm.config.bos_token_id
    if bos is None or lm.encode_chat([user("?")])[0] == bos:
        return ""
    lost = not (folder / "tokenizer_config.json").is_file()
    asked = lm.chat.wants_bos and lm.tokenizer.bos_token is None
    if asked and lost:
        raise SettingsError(
            f"{lm.name} lacks its tokenizer_config.json, so that its chats would not begin with the BOS that "
            f"its chat template asks for (token {bos} by its config.json): put that file into its folder."
        )
    if lost or asked:
        why = f"its tokenizer_config.json {'is missing' if lost else 'names none'}"
    elif lm.tokenizer("")["input_ids"][:1] == [bos]:
        why = "its chat template leaves out what its tokenizer begins any other text with"
    else:
        return ""
    return f"Its chats do not begin with BOS (token {bos} by its config.json): {why}."


def _answer(lm: LanguageModel) -> None:
    """The model is asked for one token, twice at once behind different padding. Errors: `SettingsError` for
    none, one that is no number, or two that differ by more than half of the digits."""
    ids = lm.encode_chat([user("How are you?")])
    pads = ids[:_PADS]
    rows = [[*[lm.pad_id] * len(pads), *ids], [*pads, *ids]]
    mask_BT = torch.tensor([[0] * len(pads) + [1] * len(ids)] * 2, device=lm.device)
    with one_sentence(lambda error: f"{lm.name} cannot answer: {first_line(error)}."), torch.inference_mode():
        one_V, other_V = lm.model(
            input_ids=torch.tensor(rows, device=lm.device),
            attention_mask=mask_BT,
            position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0),
            logits_to_keep=1,
        ).logits[:, -1]
    if (one_V.isnan() | one_V.isposinf()).any():
        raise SettingsError(
            f"{lm.name} answers nothing that is a number: its weights are damaged, or do not fit into "
            f"{lm.info.dtype}; download it again, or load it in float32."
        )
    differs = (one_V - other_V).float().norm() / one_V.float().norm()
    if differs > torch.finfo(one_V.dtype).eps ** 0.5:
        raise SettingsError(
            f"{lm.name} ({lm.info.architecture}) also reads what fills up a batch, so that its numbers would "
            "depend on what stands beside a text: choose a model with attention."
        )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain(source: Source, error: BaseException) -> str:
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
        return f"The download of {name} broke off ({first_line(error)}): start again, it goes on from there."
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"{name} does not fit into memory: choose a smaller model."
    if "untagged enum" in text or "tokenizer version" in text:
        return (
            f"{name} has a tokenizer.json that is damaged, or newer than tokenizers {tokenizers.__version__} "
            f"reads ({first_line(error)}): run `pip install -U tokenizers transformers`."
        )
    if isinstance(error, ImportError) and "bitsandbytes" in text:
        return (
            f"{name} is quantised with bitsandbytes, which is not installed: run `pip install bitsandbytes`."
        )
    if "backend tokenizer" in text:
        return no_tokenizer(name)
    if "custom code" in text or "trust_remote_code" in text:
        return f"{name} needs code from its own repository, which is never run: choose another model."
    if "does not recognize this architecture" in text or "Unrecognized" in text:
        return f"The architecture of {name} is unknown to transformers: choose another causal language model."
    return f"{name} could not be loaded: {first_line(error)}."
