"""Steer and heal a language model in the browser: `python app.py`."""

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from importlib import import_module
from typing import Any

from components import access, quick_import
from steer_heal.config import LOCAL, SettingsError
from steer_heal.engine.starting import Starting
from steer_heal.printing import print_anything
from steer_heal.sources import default_model, find


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model",
        help="a name that `python -m steer_heal models` lists, a folder, a .gguf file, or a hub id; "
        f"{default_model()[0]} if none",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; any that others can reach needs a login"
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where heal runs are kept")
    parser.add_argument("--db", default="runs.duckdb", metavar="FILE", help="the readable index of the runs")
    parser.add_argument("--runs-at-once", type=int, default=1, metavar="N", help="the others are queued")
    parser.add_argument("--cluster", default=LOCAL, metavar="ray://HOST:PORT", help="where runs go")
    parser.add_argument(
        "--login-file", metavar="FILE", help=f"holds name:password; or set {access.LOGIN} in the environment"
    )
    parser.add_argument("--share", action="store_true", help="a public link through gradio; needs a login")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted, which gives 130; 2 and a sentence on stderr when it cannot start."""
    print_anything()
    args = arguments(argv)
    model, note = (args.model, "") if args.model else default_model()
    if note:
        print(note, flush=True)

    def engine_of_the_page() -> Any:
        asked = {"runs_dir": args.runs, "db": args.db, "at_once": args.runs_at_once, "cluster": args.cluster}
        engine = import_module("steer_heal.engine").Engine(model, **asked)
        gc.freeze()  # what is loaded stays to the end: no collection need look at it
        gc.enable()
        return engine

    try:
        login = access.login(os.environ, args.login_file)
        access.check(args.host, login, share=args.share)
        with access.bind(args.host, args.port) as listening:
            # Imported only now, as what was asked for may be refused: they take seconds, a tenth of it to
            # look for garbage where there is none.
            gc.disable()
            engine = Starting(find(model), engine_of_the_page)
            quick_import.import_gradio()
            serve = import_module("components.server").serve
            with closing(engine):
                serve(engine, listening, login, share=args.share, begin=engine.begin)
    except SettingsError as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass  # uvicorn ends by raising it or, seen on a busy machine, by returning
    return 130


if __name__ == "__main__":
    sys.exit(main())
