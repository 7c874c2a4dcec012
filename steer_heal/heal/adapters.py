"""LoRA through peft: a fresh round on top of the folded history, on top of the untouched base.

Each round is one adapter, `round-N`. Folding keeps it active and frozen beneath the next; nothing is ever
merged into the base's weights, so that with every adapter off the base's logits are bit-identical to before
the run. Which adapters are active changes only in the context managers below, never between a forward pass
and its backward pass. An adapter from elsewhere may be of any of peft's kinds for which this holds, which is
tried as it is put on. Source of LoRA: Hu et al., 2021, arXiv:2106.09685.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from steer_heal.config import SettingsError, TrainSettings, first_line, one_sentence
from steer_heal.models import LanguageModel
from steer_heal.models.kept import Kept

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_ROUND = re.compile(r"round-([1-9][0-9]*)")
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""How a LoRA may have begun: none of these changes the base. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA do, and
what they were trained on is not in their files."""
_PLAIN = (".lora_A.weight", ".lora_B.weight")
"""Tensors that nothing of the base is overwritten by."""
_PROBES = 16
"""Tokens, spread over the vocabulary, of the text by which a model is known again."""


def adapter_name(round_: int) -> str:
    """The adapter's name in peft, and its folder's."""
    return f"round-{round_}"


def saved_rounds(folder: str | Path) -> list[int]:
    """The rounds whose adapters lie in the folder, ascending."""
    names = (file.parent.name for file in Path(folder).glob(f"round-*/{WEIGHTS}"))
    return sorted(int(match[1]) for match in map(_ROUND.fullmatch, names) if match)


def target_modules(lm: LanguageModel) -> list[str]:
    """The attention's and the MLP's linear layers: leaf names, or full paths where a leaf is not unique."""
    inside = {id(module) for block in lm.blocks for module in block.modules()}
    linear = {path: m for path, m in lm.model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    wanted = [path for path, module in linear.items() if id(module) in inside]
    if not wanted:
        raise SettingsError(f"{lm.name} has no linear layers in its blocks that LoRA could be put on.")
    leaves = {path.rpartition(".")[2] for path in wanted}
    outside = {path.rpartition(".")[2] for path in linear.keys() - set(wanted)}
    spill = bool(leaves & outside)
    return wanted if spill else sorted(leaves)


def _sort_targets(config: Path) -> None:
    """peft keeps the names as a set; sorted, the same adapter is the same file."""
    values = json.loads(config.read_text(encoding="utf-8"))
    values["target_modules"] = sorted(values["target_modules"])
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class AdapterStack:
    """The adapters of a run on a model: `history` are the folded rounds, `current` is the one in training."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self._targets = target_modules(lm)
        self.history: tuple[int, ...] = ()
        self.current: int | None = None
        self._peft: PeftModel | None = None
        self._bare: Kept | None = None
        self._active: tuple[str, ...] = ()

    def fresh(
        self, round_: int, settings: TrainSettings, *, seed: int, layers: Sequence[int] | None = None
    ) -> None:
        """Put a trainable adapter on; it changes nothing yet (B is zero). A is drawn from `seed` alone.

        `layers`: the blocks that carry it, all of them when None.
        """
        if self.current is not None or round_ in self.history:
            raise ValueError(f"round {round_} cannot begin beside {self.history} and {self.current}")
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=2 * settings.rank,
            target_modules=self._targets,
            layers_to_transform=None if layers is None else list(layers),
            task_type="CAUSAL_LM",
        )
        name = adapter_name(round_)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if self._peft is None:
                self._bare = Kept(self.lm.model)
                self._peft = get_peft_model(self.lm.model, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)
        self._peft.eval()
        self.current = round_
        self._activate([*map(adapter_name, self.history), name])

    def fold(self) -> None:
        """Freeze the adapter in training and keep it active beneath the rounds to come."""
        if self.current is None:
            raise ValueError("no adapter is in training")
        self.history, self.current = (*self.history, self.current), None
        self._activate(self._active)

    def trainable(self) -> list[nn.Parameter]:
        """The parameters of the adapter in training, the only ones that ask for a gradient."""
        return [parameter for parameter in self.lm.model.parameters() if parameter.requires_grad]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Every adapter off: the base, bit for bit."""
        with self._only(()):
            yield

    @contextmanager
    def previous(self) -> Iterator[None]:
        """The folded history without the adapter in training: the previous round's student."""
        with self._only(tuple(map(adapter_name, self.history))):
            yield

    def save(self, round_: int, folder: str | Path) -> Path:
        """Write the round in peft's format to `folder/round-N`; its path. `SettingsError` if it fails."""
        path = Path(folder) / adapter_name(round_)
        if self._peft is None:
            raise ValueError("there is no adapter to save")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._peft.save_pretrained(str(folder), selected_adapters=[adapter_name(round_)])
            (path / WEIGHTS).chmod(0o644)
            _sort_targets(path / CONFIG)
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            raise SettingsError(f"Cannot write {path} ({why}): free some space or choose a place.") from error
        return path

    def load(self, round_: int, folder: str | Path) -> None:
        """Fold the adapter saved at `folder/round-N` in."""
        self.load_path(Path(folder) / adapter_name(round_), round_)

    def load_path(self, path: str | Path, round_: int = 1) -> None:
        """Fold an adapter of peft's format in as round `round_`.

        `SettingsError` when it does not fit, or when with it off the model would not be to the bit what it
        was; the model is then as before.
        """
        path, name = Path(path), adapter_name(round_)
        if self.current is not None or round_ in self.history:
            raise ValueError(f"round {round_} cannot be loaded beside {self.history} and {self.current}")
        held = _read(path)
        tokens = {"trainable_tokens" in " ".join(keys) for keys in (held, self.lm.model.state_dict())}
        if self.history and len(tokens) > 1:
            raise SettingsError(
                f"The adapter {path} cannot be put on beside the one before it, as only one of them trains "
                "single tokens (trainable_token_indices), which peft does not add up: put it on alone."
            )
        peft, bare = self._peft, self._bare or Kept(self.lm.model)
        plain = all(key.endswith(_PLAIN) for key in held)
        before = Kept(peft or self.lm.model, copies=not plain)
        with self.off():
            base = before.hashes(), self._logits()
        try:
            with one_sentence(
                lambda error: f"The adapter {path} cannot be put on {self.lm.name}: {first_line(error)}."
            ):
                if self._peft is None:
                    self._peft = PeftModel.from_pretrained(self.lm.model, str(path), adapter_name=name)
                else:
                    self._peft.load_adapter(str(path), adapter_name=name)
                self._peft.eval()
                self._check_tensors(held, name)
                self._activate([*map(adapter_name, self.history), name])
                self._check_acts(before, *base)
        except BaseException:
            self._peft = peft
            before.restore()
            self._activate([*map(adapter_name, self.history)])
            raise
        self._bare, self.history = bare, (*self.history, round_)

    def strange(self) -> list[str]:
        """The other models that what is on was trained on, by its own account."""
        told = [] if self._peft is None else self._peft.peft_config.values()
        names = {Path(config.base_model_name_or_path or "").name for config in told}
        own = {Path(name or "").name for name in (self.lm.name, self.lm.model.name_or_path)}
        return sorted(names - own - {""}) if all(own) else []

    def merge(self) -> nn.Module:
        """The base with what is active added to its weights for good: the model is used up."""
        if self._peft is None:
            raise ValueError("there is no adapter to merge")
        tuner: Any = self._peft.base_model
        # Sums beside the weights, not over them, so that what is kept of those is seen to be old.
        return tuner.merge_and_unload(safe_merge=True, adapter_names=list(self._active))

    def unload(self) -> None:
        """Take every adapter off for good; the base's own modules are back. Harmless when there is none."""
        if self._bare is not None:
            self._bare.restore()
        self._peft, self._bare, self.history, self.current, self._active = None, None, (), None, ()

    @torch.no_grad()
    def _logits(self, model: nn.Module | None = None) -> Tensor:
        """What the model, with the adapters that are active, makes of the probe."""
        ids_T = torch.linspace(0, self.lm.config.vocab_size - 1, _PROBES, device=self.lm.device).long()
        network: Any = model or self.lm.model
        return network(input_ids=ids_T[None], use_cache=False).logits

    def _check_tensors(self, held: dict[str, Tensor], name: str) -> None:
        """`ValueError` unless the file held all of the adapter's tensors, and no other that has no place."""
        wanted = get_peft_model_state_dict(self._peft, adapter_name=name, save_embedding_layers=False)
        assert self._peft is not None
        odd = {*wanted} - {*held} | {*held} - {*wanted} - {*self._peft.state_dict()}
        if odd:
            raise ValueError(f"it was made for another model ({min(odd)})")

    def _check_acts(self, before: Kept, hashes: list[bytes], base_BTV: Tensor) -> None:
        """`ValueError` unless the adapter acts through the model's modules, and with it off nothing does."""
        on_BTV = self._logits()
        if not torch.isfinite(on_BTV).all():
            raise ValueError("with it on, what the model answers is not finite")
        if not torch.equal(self._logits(self._peft), on_BTV):
            raise ValueError("it does not act within the model's layers alone")
        with self.off():
            same = before.hashes() == hashes and torch.equal(self._logits(), base_BTV)
        if not same:
            raise ValueError(
                "with it off the model is not the base any more, as it changes the base's own weights or "
                "layers: give one that leaves them alone (a plain LoRA), or a whole model"
            )

    def _activate(self, names: Sequence[str]) -> None:
        """Exactly these adapters act, in this order; of them only the one in training asks for a gradient."""
        self._active = tuple(names)
        trained = adapter_name(self.current) if self.current is not None else None
        for layer in self.lm.model.modules():
            if not isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper):
                continue
            layer.enable_adapters(bool(names))
            if names:
                layer.set_adapter(_known(layer, names), inference_mode=True)
                if trained is not None and trained in names:
                    layer.set_requires_grad(trained, True)

    @contextmanager
    def _only(self, names: tuple[str, ...]) -> Iterator[None]:
        before = self._active
        self._activate(names)
        try:
            yield
        finally:
            self._activate(before)


def _known(layer: BaseTunerLayer | AuxiliaryTrainingWrapper, names: Sequence[str]) -> list[str]:
    """Those of the adapters that are on this layer; a tuner's own leaves out the others itself."""
    if isinstance(layer, BaseTunerLayer):
        return list(names)
    return [name for name in names if name in layer._adapters]


def _read(path: Path) -> dict[str, Tensor]:
    """The adapter's tensors. `SettingsError` where its files tell that it may not be put on a model."""
    if not (path / WEIGHTS).is_file() or not (path / CONFIG).is_file():
        pickled = " (nothing is loaded from a .bin file, which is a pickle)"
        said = pickled if next(path.glob("adapter_model.bin"), None) else ""
        raise SettingsError(f"{path} is no adapter: it must hold {CONFIG} and {WEIGHTS}{said}.")
    with one_sentence(lambda error: f"The adapter {path} cannot be read: {first_line(error)}."):
        values: Any = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        config = PeftConfig.from_pretrained(str(path))
        held = load_file(path / WEIGHTS)
    why, start = "", values.get("init_lora_weights")
    if config.is_prompt_learning or values.get("alora_invocation_tokens"):
        why = f"it acts on the prompt ({values['peft_type']}) and not in the model's layers"
    elif start not in _STARTS:
        why = (
            f"it was trained on weights that its method ({start}) had changed, and needs those: convert it "
            "to a plain LoRA (path_initial_model_for_weight_conversion of peft's save_pretrained)"
        )
    elif broken := sorted(key for key, tensor in held.items() if not torch.isfinite(tensor.float()).all()):
        why = f"{broken[0]} holds values that are not finite"
    if why:
        raise SettingsError(f"The adapter {path} cannot be used: {why}.")
    return held
