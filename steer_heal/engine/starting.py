"""The engine of a page that is there before its model: a browser opens it while the weights are read."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from steer_heal import data
from steer_heal.config import AUTO, SettingsError, band_layers
from steer_heal.records import ListedModel, ModelInfo, Trait, Vignette
from steer_heal.sources import Source, described, listed


class _Files:
    """What a page is built of, as the files of its model tell it."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.models: Callable[[], list[ListedModel]] = listed

    def traits(self) -> list[Trait]:
        return list(data.traits().values())

    def vignettes(self) -> list[Vignette]:
        return data.material(demo=self.info.is_demo).vignettes(condition=data.CONDITION)

    def methods(self) -> dict[str, str]:
        return {AUTO: AUTO}

    def layers(self, band: tuple[float, float]) -> tuple[int, ...]:
        return band_layers(self.info.n_layers, band)


class Starting:
    """Stands for the engine that `make` gives.

    Until `begin` it holds only what a page is built of, as the model's files tell it; where they do not, the
    engine is made at once. From then on all that is asked of it waits for the engine, and raises what kept
    that from being made.
    """

    def __init__(self, source: Source, make: Callable[[], Any]) -> None:
        self._make, self._made = make, Future[Any]()
        info = described(source)
        self._files = None if info is None else _Files(info)
        if self._files is None:
            self._made.set_result(make())

    def begin(self, end: Callable[[], None]) -> None:
        """Makes the engine on a thread of its own; calls `end` where that fails."""

        def work() -> None:
            with suppress(InvalidStateError):  # closed meanwhile
                try:
                    engine = self._make()
                except BaseException as error:  # noqa: BLE001 - raised by `close`, and to everybody who waits
                    self._made.set_exception(error)
                    end()
                else:
                    self._made.set_result(engine)
                    engine.warm_up()  # while the browser, which waited, puts its form back

        if self._files is not None:
            self._files = None
            threading.Thread(target=work, name="starting", daemon=True).start()

    def close(self) -> None:
        """Closes the engine, but does not wait for one that is not there yet. Raises what kept it from being
        made."""
        with suppress(InvalidStateError):
            self._made.set_exception(SettingsError("The page was ended before the model was there."))
            return
        self._made.result().close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files or self._made.result(), name)
