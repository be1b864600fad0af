"""The one error that a user's mistake raises, anywhere in livetrain, and its kind that time mends."""

import difflib
import re
from collections.abc import Iterable

_PASSWORD = re.compile(r"(?<=://)[^/@\s]*?:(?!\d+(?:/|\s|$))(?:[^/\s]*@|[^@\s]*@)")
_SECRET_OPTION = re.compile(r"(?i)([?&][^=&\s]*(?:key|secret|token|sig|pass|pwd|cred|auth)[^=&\s]*=)[^&\s]*")


class BadInput(ValueError):
    """A recipe, a file or an argument is wrong.

    The message is one sentence that names the place (file, feature or key) and the mend. The command line prints it
    alone, without a traceback, and exits with 2.
    """


class NotNow(BadInput):
    """Nothing is wrong with what was asked, but it cannot be done now: the same command may do it later.

    The command line exits with 4, so that a scheduler tries again.
    """


# Of what a file system says, what is wrong with a name or a right: no time mends it.
_LASTING = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)


def may_pass(error: BadInput) -> bool:
    """Return whether an error may be over later: it was raised from a storage or a network that failed."""
    cause = error.__cause__
    return isinstance(error, NotNow) or (isinstance(cause, OSError) and not isinstance(cause, _LASTING))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known word, or the list of known words when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (known: {', '.join(known)})" if known else ""


def without_credentials(text: str) -> str:
    """Return `text` without the passwords of its URIs: ``s3://key:secret@bucket/x`` becomes ``s3://bucket/x``.

    Secret-looking query options keep their name and lose their value. A user name alone, a port or a container name
    (``hdfs://me@host:8020``, ``abfs://box@account``) stays.
    """
    return _SECRET_OPTION.sub(r"\1***", _PASSWORD.sub("", text)) if "://" in text else text
