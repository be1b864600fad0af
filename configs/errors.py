"""The one error that a user's mistake raises, anywhere in livetrain, and its kind that time mends."""

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

_PASSWORD = re.compile(r"(?<=://)[^/@\s]*?:(?!\d+(?:/|\s|$))(?:[^/\s]*@|[^@\s]*@)")
_SECRET_OPTION = re.compile(r"(?i)([?&][^=&\s]*(?:key|secret|token|sig|pass|pwd|cred|auth)[^=&\s]*=)[^&\s]*")

_LONGEST = 140  # letters of a list of known words: a table may have a thousand columns
_SENTENCE = 299  # characters of a message, at most
_VALUE = 60  # characters of a value in a message, at most
_REASON = 110  # characters of another error in a message, at most


class BadInput(ValueError):
    """A recipe, a file or an argument is wrong.

    The message is one sentence that names the place (file, feature or key) and the mend. The command line prints it
    alone, without a traceback, and exits with 2. Whatever a file or a user's argument puts into it, it stays one line
    of under 300 characters without control characters.
    """

    def __init__(self, message: str) -> None:
        super().__init__(cut(plain(message), _SENTENCE))


def plain(text: str) -> str:
    """Return `text` as one line in which control characters, and bytes that are no text, are written as escapes."""
    if text.isprintable():
        return text
    text = re.sub(r"\s*\n\s*", " ", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def cut(text: str, most: int = _VALUE) -> str:
    """Return `text`, without its middle where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    end = (most - 3) // 2
    return f"{text[: most - 3 - end]}...{text[-end:]}"


def short(error: BaseException) -> str:
    """Return the first line of an error's message, without its end point; the beginning of a long one."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return text if len(text) <= _REASON else f"{text[: _REASON - 3]}..."


def shown(value: Any) -> str:
    """Return a value of a recipe as a message shows it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{cut(plain(value))}'"
    if isinstance(value, int) and value.bit_length() > 128:  # Python writes no number of more than 4,300 digits
        return f"a number of {math.ceil(value.bit_length() * math.log10(2)):,} digits"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple | set):
        return "a list"
    return "a mapping of keys"


class NotNow(BadInput):
    """Nothing is wrong with what was asked, but it cannot be done now: the same command may do it later.

    The command line exits with 4, so that a scheduler tries again.
    """


# Of what a file system says, what is wrong with a name or a right: no time mends it.
_LASTING = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
# The same as object stores say it: by a code of theirs, or by HTTP's (408 and 429 pass).
_REFUSED = re.compile(
    r"(?i)access.?denied|forbidden|permission.?denied|unauthor|unauthenticated|invalid.?access.?key|signature.?does.?not"
    r"|no.?such.?(bucket|key|upload)|not.?found|does.?not.?exist|invalid.?(argument|bucket)|expired.?token"
    r"|\bstatus:? (?:code )?4(?!08|29)\d\d"
)


def lasts(error: OSError) -> bool:
    """Return whether no time mends what a storage or a network said: a name or a right is wrong."""
    said = re.sub(r"'[^']*'", "''", str(error))  # names of buckets and keys are in quotes, and may be any words
    return isinstance(error, _LASTING) or _REFUSED.search(said) is not None


def may_pass(error: BadInput) -> bool:
    """Return whether an error may be over later: it was raised from a storage or a network that failed."""
    cause = error.__cause__
    return isinstance(error, NotNow) or (isinstance(cause, OSError) and not lasts(cause))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known word, or the list of known words when none is close."""
    known = sorted(known)
    same = [name for name in known if name.casefold() == word.casefold()]
    close = same or difflib.get_close_matches(word[:_SENTENCE], known, n=1, cutoff=0.6)
    if close:
        return f" (did you mean '{cut(close[0], 120)}'?)"
    return f" (known: {cut(', '.join(known), _LONGEST)})" if known else ""


def without_credentials(text: str) -> str:
    """Return `text` without the passwords of its URIs: ``s3://key:secret@bucket/x`` becomes ``s3://bucket/x``.

    Secret-looking query options keep their name and lose their value. A user name alone, a port or a container name
    (``hdfs://me@host:8020``, ``abfs://box@account``) stays.
    """
    return _SECRET_OPTION.sub(r"\1***", _PASSWORD.sub("", text)) if "://" in text else text
