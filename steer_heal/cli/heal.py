"""`heal`: a run in the foreground, with the table of its stages."""

from importlib import import_module
from typing import Any

from steer_heal.cli.arguments import HEAL_NAMED, Namespace, nested, sampling
from steer_heal.cli.tables import Column, Out, Table, number, p_of, probabilities, worth
from steer_heal.config import EvalSettings, HealSettings, SettingsError, changed, heal_settings
from steer_heal.data import trait
from steer_heal.records import Agreement, Event
from steer_heal.runs import events
from steer_heal.runs.jobs import LocalProcesses, RunFolder, this_process
from steer_heal.runs.store import Store, StoreBusy
from steer_heal.runs.store.rows import TEXT
from steer_heal.runs.validate import check

_FACTS = (
    "retention", "kept", "made", "c_star", "seconds", "headline", "retention_interval", "intervals",
    "differences", "shift_cosine", "as_far", "facts_kept", "neutral_kl", "beside",
)  # fmt: skip


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 only when the run finished; 1 failed, 3 cancelled."""
    launcher, store = LocalProcesses(args.runs), Store(args.db)
    _try_store(out, lambda: store.marks())
    folder = _folder(args, launcher)
    # Only now: it takes seconds, and the settings may be refused.
    worker = import_module("steer_heal.runs.worker")
    out.note(f"Run {folder.run_id} in {folder.path} (Ctrl-C stops it after the step)")
    report = Report(folder, store, out, everything=args.all)
    with worker.stopping() as stopped:
        status = worker.work(folder, stopped, report.hear, out.model)
    report.ingest()
    last = folder.last_event()
    why = {} if last is None else last.data
    message = str(why.get("message") or why.get("reason") or "")
    out.text("", f"{status}: {message}" if message else status)
    out.document(
        {
            "command": "heal",
            "run_id": folder.run_id,
            "status": status,
            "message": message,
            "rows": report.rows,
            "settings": folder.settings().model_dump(mode="json"),
        }
    )
    return worker.EXIT[status]


def _folder(args: Namespace, launcher: LocalProcesses) -> RunFolder:
    if args.resume:
        return launcher.reopen(args.resume, worker=this_process())
    return launcher.create(check(settings_of(args, launcher)), worker=this_process())


def settings_of(args: Namespace, launcher: LocalProcesses) -> HealSettings:
    """What the arguments of `add_settings` ask for. Errors: `SettingsError`."""
    drawn = [(["data", name], value) for name, value in sampling(args).items()]
    changes = nested([*args.settings, *drawn])
    for key in ("vignettes", "frame", "controls"):
        if getattr(args, key) != getattr(EvalSettings(), key):
            changes.setdefault("evaluate", {})[key] = getattr(args, key)
    if not args.clone:
        return heal_settings(args.preset, **{**{key: getattr(args, key) for key in HEAL_NAMED}, **changes})
    if args.preset != args.usual["preset"]:
        raise SettingsError("--preset does not go with --clone: change single settings with --set.")
    given = {key: getattr(args, key) for key in HEAL_NAMED if getattr(args, key) != args.usual[key]}
    return changed(launcher.settings(args.clone), **{**given, **changes})


def _try_store(out: Out, use: Any) -> None:
    try:
        use()
    except StoreBusy as busy:
        out.note(f"{busy} The run's log keeps everything until then.")


class Report:
    """Hears a run's events: rows of the stage table as they come, progress, and the store kept up to date."""

    def __init__(self, folder: RunFolder, store: Store, out: Out, *, everything: bool) -> None:
        self.rows: list[dict[str, Any]] = []
        self._calibrated: dict[str, Any] = {}
        self._folder, self._store, self._out = folder, store, out
        self._table = Table(
            [
                number("round", "round", "d", 5),
                Column("stage", "stage", width=8),
                number("alpha", "alpha", ".2f", 6),
                *probabilities(trait(folder.settings().trait), everything=everything),
                number("agreement", "agreement", ".2f"),
                number("coherence", "coherence"),
                number("perplexity", "perplexity", ".2f"),
                number("relevance", "relevance", ".2f"),
                number("looping", "looping", ".0%"),
                Column("text_verdict", "text", width=7),
                Column("answers_verdict", "answers", width=8),
                number("retention", "retention", ".2f"),
                number("kept", "kept", "d", 5),
                number("made", "made", "d", 5),
            ]
        )
        for event in events.read(folder.log).events:
            self._take(event)

    def hear(self, event: Event) -> None:
        self._take(event)
        if event.kind in ("started", "resumed"):
            self._out.text(self._table.head(), *(self._table.line(row) for row in self.rows))
        elif event.kind == "profile" and event.data["stage"] != "healed":
            self._out.text(self._table.line(self.rows[-1]))
        elif event.kind == "round":
            self._out.text(self._table.line(self.rows[-1]), *_said(event.data))
            self.ingest()
        self._tell(event)

    def ingest(self) -> None:
        """Brings the store up to the log."""
        _try_store(self._out, lambda: self._store.ingest(self._folder.run_id, events.read(self._folder.log)))

    def _take(self, event: Event) -> None:
        if event.kind == "profile":
            row = _row(event)
            same = (row["round"], row["stage"])
            self.rows = [*(known for known in self.rows if (known["round"], known["stage"]) != same), row]
            self.rows[-1].update(self._calibrated if event.data["stage"] == "steered" else {})
        elif event.kind == "calibrated":
            self._calibrated = {key: event.data.get(key) for key in ("c_star", "kl_p95")}
        elif event.kind == "round" and self.rows:
            as_far = event.data.get("as_far")
            self.rows[-1].update({key: event.data.get(key) for key in _FACTS})
            self.rows[-1]["beyond_random"] = None if as_far is None else as_far == 0
        elif event.kind == "resumed":
            done = event.data.get("round") or 0
            self.rows = [row for row in self.rows if row["round"] <= done]

    def _tell(self, event: Event) -> None:
        data = event.data
        where = (
            f"round {event.round}, {data.get('stage', 'train')}"
            if event.round
            else str(data.get("stage", ""))
        )
        if event.kind in ("vector", "calibrated") and data.get("message"):
            self._out.note(f"Round {event.round}: {data['message']}")
        elif event.kind == "stage":
            self._out.progress(f"{where} ...")
        elif event.kind == "progress":
            self._out.progress(f"{where}: {data.get('done')} of {data.get('total')}")
        elif event.kind == "step":
            self._out.progress(
                f"{where}: step {data.get('step')} of {data.get('total')}, loss {data.get('loss') or 0.0:.3f}"
            )


def _said(data: dict[str, Any]) -> list[str]:
    """The round's headline with the thresholds it was judged by, and its intervals."""
    said = data.get("headline")
    if not said:
        return []
    lines = [f"  {said['word']}: {said['why']}"]
    if interval := data.get("retention_interval"):
        moved, low, high = data["differences"]["healed-steered"]
        lines.append(
            f"  retention {interval[0]:.2f} to {interval[1]:.2f}; trait against steering at alpha 1 "
            f"{moved:+.3f} ({low:+.3f} to {high:+.3f}), 95% over vignettes"
        )
    if data.get("facts_kept") is not None:
        lines.append(f"  facts kept {data['facts_kept']:.0%}")
    if data.get("neutral_kl") is not None:
        lines.append(f"  KL from base on neutral prompts {data['neutral_kl']:.2f} nats a token")
    limits = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in said["thresholds"].items())
    return [*lines, f"  judged by: {limits}"]


def _row(event: Event) -> dict[str, Any]:
    data = event.data
    row: dict[str, Any] = {"round": event.round or 0, "stage": data["stage"], "alpha": data["alpha"]}
    row |= p_of(data["p"]) | {"others": data.get("others")}
    row |= {"coherence": data["coherence"], "n_vignettes": data["n_vignettes"]}
    row |= worth(data.get("frame"), Agreement(**data.get("agreement") or {}), data.get("order_tv"))
    text = data.get("text") or {}
    row |= {key: text.get(key) for key in (*TEXT, "diversity")}
    row |= {key: data.get(key) for key in ("text_verdict", "answers_verdict")}
    row["verdict"] = row["text_verdict"]
    return row | dict.fromkeys(("retention", "kept", "made"))
