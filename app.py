"""Steer and heal a language model in the browser: `python app.py`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from components import access
from components.server import bind, serve
from steer_heal.config import DEFAULT_MODEL, GEMMA, SettingsError
from steer_heal.engine import Engine
from steer_heal.models import default_model
from steer_heal.printing import print_anything


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model",
        help=f"{DEFAULT_MODEL} (bundled), a hub id, or a folder; {GEMMA} if it is on this machine, "
        f"else {DEFAULT_MODEL}",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; any that others can reach needs a login"
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where heal runs are kept")
    parser.add_argument("--db", default="runs.duckdb", metavar="FILE", help="the readable index of the runs")
    parser.add_argument("--runs-at-once", type=int, default=1, metavar="N", help="the others are queued")
    parser.add_argument(
        "--login-file", metavar="FILE", help=f"holds name:password; or set {access.LOGIN} in the environment"
    )
    parser.add_argument("--share", action="store_true", help="a public link through gradio; needs a login")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted; 2 when it cannot start, with one sentence why on stderr."""
    print_anything()
    args = arguments(argv)
    model, note = (args.model, "") if args.model else default_model()
    if note:
        print(note, flush=True)
    try:
        login = access.login(os.environ, args.login_file)
        access.check(args.host, login, share=args.share)
        with bind(args.host, args.port) as listening:
            engine = Engine(model, runs_dir=args.runs, db=args.db, at_once=args.runs_at_once)
            try:
                serve(engine, listening, login, share=args.share)
            finally:
                engine.close()
    except SettingsError as problem:
        print(problem, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
