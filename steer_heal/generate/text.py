"""Text of a growing list of tokens, given out only when its characters are whole."""

from collections.abc import Callable, Sequence

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4


class TextStream:
    """Token by token, the text that each one completes.

    A character spread over several byte tokens comes with the last of them. Bytes that form no character are
    given out as replacement characters after at most four tokens, so broken text does not stall.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._n_given = 0
        """Ids whose text has been given out; the few before the others are kept for their context."""
        self._given = decode([])

    def push(self, token: int, *, last: bool = False) -> str:
        """The text that `token` completes, all that is left when it is the last."""
        self._ids.append(token)
        text = self._decode(self._ids)
        waiting = len(self._ids) - self._n_given < _LONGEST_CHARACTER
        if text.endswith(_INCOMPLETE) and waiting and not last:
            return ""
        self._ids = self._ids[self._n_given :]
        self._n_given = len(self._ids)
        new, self._given = text[len(self._given) :], self._decode(self._ids)
        return new
