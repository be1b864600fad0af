"""The one error that a user's mistake raises, anywhere in livetrain."""

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """A recipe, a file or an argument is wrong.

    The message is one sentence that names the place (file, feature or key) and the mend. The command line prints it
    alone, without a traceback, and exits with 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known word, or the list of known words when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (known: {', '.join(known)})" if known else ""
