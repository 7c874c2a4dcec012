"""One model and the runs: everything the page and the command line can ask for."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from steer_heal import data, models, sources
from steer_heal.config import (
    AUTO,
    LOCAL,
    DoseRequest,
    HealSettings,
    SampleSettings,
    SettingsError,
    SteerRequest,
    TalkRequest,
    build,
    changed,
)
from steer_heal.data import own_traits
from steer_heal.engine.answer import encode
from steer_heal.engine.answer_batch import Answers
from steer_heal.engine.beside_random import BesideRandom
from steer_heal.engine.effects import Effects
from steer_heal.engine.healed import HealedRounds
from steer_heal.engine.preemptible import while_wanted
from steer_heal.engine.requests import Request, Waiting
from steer_heal.engine.run_index import RunIndex
from steer_heal.engine.run_sweeps import RunSweeps
from steer_heal.engine.scheduler import Scheduler
from steer_heal.engine.sweeps import Sweeps, ending
from steer_heal.engine.vectors import Vectors
from steer_heal.evaluate import drafts
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.frames import Frames
from steer_heal.models import LanguageModel, band_layers
from steer_heal.records import (
    Calibration,
    Effect,
    ListedModel,
    MeasuredDose,
    ModelInfo,
    Profile,
    SteerFrame,
    Stopped,
    Sweep,
    TalkFrame,
    Trait,
    Vignette,
)
from steer_heal.runs.jobs import LocalProcesses
from steer_heal.runs.jobs.ray_cluster import RayCluster
from steer_heal.runs.store import Store
from steer_heal.runs.validate import check
from steer_heal.vectors.bridges.extraction import titles

T = TypeVar("T")
AGAIN_S = 1.0
"""How often who waits for an effect hears what is being measured."""


class Engine:
    """Steers one model for several sessions, and launches and shows runs.

    Bad input raises `SettingsError`, one sentence, and changes nothing. All methods may be called from any
    thread; the model itself is used by one. `cache_dir` keeps vectors and calibrations; beside `runs_dir`
    when none. `model` is the default one when none (see `sources`); `lm` takes the place of loading it.
    `at_once`: heal runs that may go at a time; `cluster`: the address of a Ray cluster on which they go.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        runs_dir: str | Path = "runs",
        db: str | Path = "runs.duckdb",
        cache_dir: str | Path | None = None,
        lm: LanguageModel | None = None,
        at_once: int = 1,
        cluster: str = LOCAL,
    ) -> None:
        folder = Path(runs_dir).absolute()
        self._cache_dir = Path(cache_dir) if cache_dir else folder.parent / "cache"
        here = cluster == LOCAL
        launcher = LocalProcesses(folder, at_once=at_once) if here else RayCluster(folder, cluster)
        self.runs = RunIndex(launcher, Store(db, patience=1.0))
        self._take(models.load(model or models.default_model()[0]) if lm is None else lm)
        self.scheduler = Scheduler()
        self.sweeps = RunSweeps(self.runs, folder, sound=self._sound)
        self._numbers = itertools.count()
        self._choosing = threading.Lock()

    def use(self, model: str, *, progress: Callable[[str], None] | None = None) -> ModelInfo:
        """Steer this model from now on, for everyone; the one before is freed. `progress` hears, in words,
        what loading does; the old model answers until its files are here. A folder or a file is read anew,
        as it may have been repaired. Raises: `SettingsError`, and then nothing has changed."""
        again = model == self.info.name and not Path(model).expanduser().exists()
        if not again:
            models.prepare(models.find(model), progress)

        def change() -> ModelInfo:
            if not again:
                self._take(models.load(model, progress=progress))
                models.free()
            return self.info

        return self._once(change)

    def models(self) -> list[ListedModel]:
        """The models known by name, and what else is on this machine by a name that is no folder of it."""
        return [row for row in sources.listed() if not Path(row.name).is_absolute()]

    def _take(self, lm: LanguageModel) -> None:
        """From now on this model, which has written something. Errors: `SettingsError` where it cannot."""
        vectors, frames = Vectors(lm, self._cache_dir), Frames(lm, self._cache_dir)
        answers = Answers(lm, vectors, HealedRounds(lm, self.runs))
        answers.try_out()
        self._lm, self._vectors, self._answers, self._frames = lm, vectors, answers, frames
        self._sweeps = Sweeps(lm, vectors, frames)
        self._effects = Effects(lm, vectors, frames, self._cache_dir)
        self._beside_random = BesideRandom(lm.info)
        self.info: ModelInfo = lm.info

    def warm_up(self) -> None:
        """Does ahead what the first answer would wait for: the weights are hashed and packed."""
        asked = build(SteerRequest, prompt="?", sample=SampleSettings(max_new_tokens=2), carried=True)
        if self._vectors.ready(asked.trait, asked.band, self._vectors.method(asked.method, asked.trait)):
            for _ in self.steer(asked, session="warm up"):
                pass

    def traits(self) -> list[Trait]:
        """All traits, the default one first."""
        return list(data.traits().values())

    def make_trait(
        self,
        plus: str,
        minus: str,
        replies: Sequence[tuple[str, str]] = (),
        target: str = "",
        scenes: Sequence[str] = (),
        *,
        progress: Callable[[str], None] = lambda _text: None,
    ) -> tuple[Trait, str]:
        """A trait of the user's own between two poles, kept, and what is to be said of it; one that is there
        already is given back, with these paired `replies`, the `scenes` that they answer and this `target`
        ("Care=1, SocialNorms=-1") where there are some. What is not given is drafted by the loaded model;
        replies also where the scenes are new. `progress` hears in words what is waited for. Raises:
        `SettingsError` for poles, replies, scenes or a target that will not do."""
        name = own_traits.name_of(plus, minus)
        row = own_traits.of_poles(name, plus, minus)
        data.checked_trait(f"trait {name}", row)
        file = own_traits.files().get(name)
        known = data.trait_entry(file) if file else {}
        if file and all(known.get(side) == row[side] for side in ("positive", "negative")):
            row = known
        else:
            own_traits.check_new(name)
        row = own_traits.with_replies(row, replies, scenes)
        if aimed := data.aim(target):
            row |= {"target": aimed}
        trait = data.checked_trait(f"trait {name}", row)

        def work(stop: Callable[[], bool]) -> tuple[dict[str, Any], str]:
            def say(text: str) -> None:
                progress(f"{self.info.name} {text}")
                ending(stop)(text)

            return drafts.completed(self._lm, row, trait, say=say)

        row, said = self._sliced(work, waiting=progress)
        made = data.checked_trait(f"trait {name}", row)
        own_traits.write(row)
        return made, said

    def vignettes(self, condition: str = data.CONDITION) -> list[Vignette]:
        """The loaded model's vignettes of one condition."""
        return self._lm.material.vignettes(condition=condition)

    def layers(self, band: tuple[float, float]) -> tuple[int, ...]:
        """The layers of the loaded model that the band holds."""
        return band_layers(self._lm.n_layers, band)

    def steer(self, request: SteerRequest, *, session: str) -> Iterator[SteerFrame]:
        """Base and steered answer as they are written, a frame a token; base comes from memory when known.

        A session's newer request ends its older one, whose last frame then has `superseded`. Answers of
        several sessions are written in one batch, each as if alone; `waiting` counts who is ahead while there
        are many. Who reads slowly gets the newest frame.
        """
        self.scheduler.stop(f"kl {session}")
        for item in self.scheduler.join(f"steer {session}", request, self._answers):
            waiting = isinstance(item, Waiting)
            yield SteerFrame((), (), False, False, waiting=item.ahead) if waiting else item()

    def talk(self, request: TalkRequest, *, session: str) -> Iterator[TalkFrame]:
        """The next answers of a conversation as they are written, in one batch with others' and with pairs;
        the last frame is `done` and has each one's health under base. A session's newer request ends its
        older one. Who reads slowly gets the newest frame."""
        for item in self.scheduler.join(f"talk {session}", request, self._answers):
            yield TalkFrame((), waiting=item.ahead) if isinstance(item, Waiting) else item()

    def stop(self, session: str) -> None:
        """Ends what the session has running, within a token."""
        for work in ("steer", "dose", "kl", "talk"):
            self.scheduler.stop(f"{work} {session}")

    def profile(self, request: SteerRequest) -> tuple[Profile, Profile]:
        """The seven foundations, or the trait's poles, for this prompt as a vignette: base and steered, in
        the frame that suits the model; base's agreement is that frame's over our own vignettes, and the
        steered one has none."""
        reading = self._reading(data.frame_of(data.trait(request.trait)))

        def measure() -> tuple[Profile, Profile]:
            encode(self._lm, request.prompt)
            steer = self._vectors.of(request)
            vignette = Vignette("prompt", "", request.prompt, data.CONDITION)
            base, steered = evaluate(
                self._lm,
                [vignette],
                data.frame(reading.frame),
                vector=steer.steers,
                coefficients_RL=steer.coefficients_RL(0.0, request.alpha),
                calibrated=reading.calibration,
            )
            return replace(base, agreement=reading.agreement), steered

        return self._once(measure)

    def kl(self, request: SteerRequest, *, session: str) -> MeasuredDose | None:
        """The KL of the request's own dose, mix and gate, over greedy answers to the prompts that c* is found
        on; measured in slices, so that answers pass. None where it was ended before: by the session's next
        answer, or by `stop`."""

        def steps(wanted: Request[MeasuredDose | None]) -> Iterator[MeasuredDose | None]:
            with suppress(Stopped):
                yield from while_wanted(
                    wanted, lambda stop: iter([self._vectors.kl(request, say=ending(stop))])
                )

        items = self.scheduler.run(f"kl {session}", steps, patient=True)
        return next((item for item in items if isinstance(item, MeasuredDose)), None)

    def methods(self) -> dict[str, str]:
        """The extraction methods that are here: name -> what it is, the loaded model's own first."""
        return titles(self.info.name)

    def calibration(self, trait: str, band: tuple[float, float], method: str = AUTO) -> Calibration:
        """c* of the trait at the band."""
        return self._once(lambda: self._vectors.steer(trait, band, method).calibration)

    def dose(self, request: DoseRequest, *, session: str) -> Iterator[Sweep]:
        """Rows so far by alpha; all of them at share 1, fewer when it was ended before.

        `prompts` are answered freely, and are also the profile's vignettes unless `n_vignettes` is given;
        then, and without prompts, the profile is of that many of the bundled ones, of all when none.
        """
        for found in self._measured(session, lambda mine: self._sweeps.dose(request, mine)):
            self._beside_random.note(request, found)
            yield found

    def effect(self, request: DoseRequest, *, session: str) -> Iterator[Effect | str]:
        """In words what is being measured, again every second, so that who hears them may end it; then what
        the vector does at its c*, unless it was ended before.

        Over our own vignettes; of the request its trait, mix, band, method, frame and controls count.
        """
        said: Effect | str = ""
        told = 0.0
        for item in self.scheduler.run(
            f"dose {session}", lambda t: self._effects.effect(request, t), patient=True
        ):
            if item is not None or time.monotonic() > told + AGAIN_S:
                said = f"waiting for {item.ahead} ahead" if isinstance(item, Waiting) else item or said
                told = time.monotonic()
                self._beside_random.note(request, said)
                yield said

    def grid(self, request: DoseRequest, *, session: str) -> Iterator[Sweep]:
        """Cells so far: every layer and every three neighbours x the alphas, or of the latter as few as hold
        every layer where the request is `coarse`; without free text.

        The profile's vignettes are as in `dose`, whose place it takes; the request's band is not used.
        """
        return self._measured(session, lambda mine: self._sweeps.grid(request, mine))

    def _measured(
        self, session: str, steps: Callable[[Request[Sweep | None]], Iterator[Sweep | None]]
    ) -> Iterator[Sweep]:
        for item in self.scheduler.run(f"dose {session}", steps, patient=True):
            if item is not None:
                yield Sweep(0.0, [], waiting=item.ahead) if isinstance(item, Waiting) else item

    def launch(self, settings: HealSettings) -> str:
        """Queues a heal run; gives its id. What can be told at once about the settings is told here."""
        sound = self._sound(settings)
        if unfit := self.runs.launcher.unfit([sound])[0]:
            raise SettingsError(unfit)
        return self.runs.start(sound)

    def doubt(self, settings: HealSettings) -> str:
        """Why a run would end before it writes an answer, as far as sweeps and effects have shown it since
        this model was chosen: a clause, empty where nothing is known against it."""
        return self._beside_random.doubt(settings)

    def _sound(self, settings: HealSettings) -> HealSettings:
        """A run's settings, checked as somebody at a page may give them."""
        loaded = settings.model == self.info.name
        if loaded:
            self.layers(settings.band)
        return check(settings, loaded=loaded, files_in=Path.cwd())

    def clone(self, run_id: str, changes: dict[str, Any] | None = None) -> str:
        """A new run with that one's settings, some of them changed (nested dicts merge); gives its id."""
        return self.launch(changed(self.runs.settings(run_id), **(changes or {})))

    def close(self) -> None:
        """Ends what is running on the model. Runs go on: they are processes of their own."""
        self.scheduler.close()
        self._answers.close()
        self.runs.launcher.close()

    def _reading(self, frame: str) -> Profile:
        """In which frame the model is asked and what that is worth; found out once, in slices."""
        with self._choosing:
            frames = self._frames
            return self._sliced(lambda stop: frames.of(frame, stop=stop), brief=frames.ready(frame))

    def _sliced(
        self,
        work: Callable[[Callable[[], bool]], T],
        *,
        brief: bool = False,
        waiting: Callable[[str], None] = lambda _text: None,
    ) -> T:
        """The result of work on the model's thread that pauses, for answers to pass, wherever it asks the
        `stop` that it is given. `waiting` hears for how many it waits before it begins."""

        def steps(request: Request[T | None]) -> Iterator[T | None]:
            return while_wanted(request, lambda stop: iter([work(stop)]))

        for item in self.scheduler.run(f"once {next(self._numbers)}", steps, patient=True, brief=brief):
            if isinstance(item, Waiting):
                waiting(f"waiting for {item.ahead} ahead")
            elif item is not None:
                return item
        raise SettingsError("The model was closed before this was done.")

    def _once(self, work: Callable[[], T]) -> T:
        """The result of one step of work on the model's thread."""
        name = f"once {next(self._numbers)}"
        steps = self.scheduler.run(name, lambda _: iter([work()]), patient=True, brief=True)
        return next(item for item in steps if not isinstance(item, Waiting))
