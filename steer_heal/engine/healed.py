"""Healed rounds on the model that the page has: put on for as long as an answer needs them, then gone."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

from steer_heal.config import SettingsError
from steer_heal.engine.run_index import RunIndex
from steer_heal.heal.adapters import WEIGHTS, AdapterStack, adapter_name, saved_rounds
from steer_heal.models import LanguageModel
from steer_heal.models.kept import Kept

Place = tuple[str, int]
"""Whose weights: a healed round's, by its run and number."""
MODEL: Place = ("", 0)
"""Those of the model as it came."""
REMEMBERED = 4
"""So many healed rounds are kept in memory, without the base's weights."""


class HealedRounds:
    """The healed rounds of one model. What was read from disk once is put on again without reading it."""

    def __init__(self, lm: LanguageModel, runs: RunIndex) -> None:
        self._lm, self._runs = lm, runs
        self._known: OrderedDict[Hashable, Kept] = OrderedDict()

    def check(self, run_id: str, round_: int) -> Path:
        """The folder of the run's adapters. Errors: `SettingsError` for a run that is gone, one of another
        model, and a round that has not been trained."""
        folder = self._runs.adapters(run_id)
        model = self._runs.settings(run_id).model
        if model != self._lm.name:
            raise SettingsError(
                f"Run {run_id} healed {model}, and here {self._lm.name} answers: choose {model} under "
                "Another model, or a run of this one."
            )
        if round_ not in (here := saved_rounds(folder)):
            has = f"only up to round {here[-1]}" if here else "no round yet"
            raise SettingsError(f"Round {round_} of run {run_id} is not there: it has {has}.")
        return folder

    @contextmanager
    def on(self, run_id: str, round_: int) -> Iterator[None]:
        """The round's adapter acts, over those of the rounds before it; afterwards the model's own modules
        are back, and it is the base to the bit. Errors: `SettingsError`."""
        folder, bare = self.check(run_id, round_), Kept(self._lm.model)
        rounds = [number for number in saved_rounds(folder) if number <= round_]
        files = [(folder / adapter_name(number) / WEIGHTS).stat() for number in rounds]
        key = run_id, round_, self._lm.state, *((one.st_mtime_ns, one.st_size) for one in files)
        try:
            if key in self._known:
                self._known[key].restore()
            else:
                stack = AdapterStack(self._lm)
                for number in rounds:
                    stack.load(number, folder)
                self._known[key] = Kept(self._lm.model)
            self._known.move_to_end(key)
            yield
        finally:
            bare.restore()
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
