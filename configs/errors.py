"""The one error that a user's mistake raises, anywhere in livetrain."""

import difflib
import re
from collections.abc import Iterable

_PASSWORD = re.compile(r"(?<=://)[^/@\s]*?:(?!\d+(?:/|\s|$))(?:[^/\s]*@|[^@\s]*@)")
_SECRET_OPTION = re.compile(r"(?i)([?&][^=&\s]*(?:key|secret|token|sig|pass|pwd|cred|auth)[^=&\s]*=)[^&\s]*")

_LONGEST = 120  # letters of a list of known words: a table may have a thousand columns


class BadInput(ValueError):
    """A recipe, a file or an argument is wrong.

    The message is one sentence that names the place (file, feature or key) and the mend. The command line prints it
    alone, without a traceback, and exits with 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known word, or the list of known words when none is close."""
    known = sorted(known)
    same = [name for name in known if name.casefold() == word.casefold()]
    close = same or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f" (did you mean '{close[0]}'?)"
    names = ", ".join(known)
    return f" (known: {names if len(names) <= _LONGEST else names[: _LONGEST - 3] + '...'})" if known else ""


def without_credentials(text: str) -> str:
    """Return `text` without the passwords of its URIs: ``s3://key:secret@bucket/x`` becomes ``s3://bucket/x``.

    Secret-looking query options keep their name and lose their value. A user name alone, a port or a container name
    (``hdfs://me@host:8020``, ``abfs://box@account``) stays.
    """
    return _SECRET_OPTION.sub(r"\1***", _PASSWORD.sub("", text)) if "://" in text else text
