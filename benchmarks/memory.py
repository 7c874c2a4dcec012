"""How much memory a piece of work takes, by looking again and again."""

from __future__ import annotations

import ctypes
import gc
import threading

import psutil


class Peak:
    """The most resident memory of this process while the context lasts, in bytes above its start."""

    def __enter__(self) -> Peak:
        _give_back()
        self._process = psutil.Process()
        self._begun = self._most = self._process.memory_info().rss
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._most = max(self._most, self._process.memory_info().rss)

    @property
    def n_bytes(self) -> int:
        return self._most - self._begun


def _give_back() -> None:
    """Freed memory that the C library keeps goes back to the system, where it can (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
