"""Values and foreign errors inside the text of an error: short, however long they are. Shared by client and service."""

from __future__ import annotations

import re
import reprlib

_MAX_NAME = 80
_MAX_CHARACTERS = 400
_MAX_SAID = 300

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _MAX_NAME
_short.maxlist = _short.maxtuple = _short.maxdict = 10
_short.fillvalue = "…"

_URL = re.compile(r"\w+://\S+")
_FOLDERS = re.compile(r"(?<![\w.…])(?:/[^\s/'\":,;()]+)+/")


def quoted(value: object) -> str:
    """Returns what `repr` says of a number, a text, or a list, tuple or dict of them: all of it where it is short.

    Of a long text the first and the last characters, of many values the first 10, `…` for the rest; at most 400
    characters. What is left out is never formatted.
    """
    text = _short.repr(value)
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"


def shortened(name: str) -> str:
    """Returns a name for where it stands without quotes: its first 79 characters and `…` where it has more than 80."""
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def brief(error: BaseException) -> str:
    """Returns the first line of what code that is not ours said: at most 300 characters, without folders and URLs.

    For errors about what the caller gave. What tells of the service's own state belongs into its log.
    """
    line = (str(error)[: 4 * _MAX_SAID].strip().splitlines() or [type(error).__name__])[0]
    line = _FOLDERS.sub("", _URL.sub("…", line))
    return line if len(line) <= _MAX_SAID else line[: _MAX_SAID - 1] + "…"
