"""Classes by the names that people type: in any case, with any separators, or as the emoji itself."""

from __future__ import annotations

import difflib
import heapq
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import pairwise

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import ModelInfo
from msf_server.errors import InvalidRequest, quoted

_ID = re.compile(r"\d{1,18}", re.ASCII)
_VARIANTS = re.compile("[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]")  # text or colour presentation, skin tones
_LATIN_ACCENTS = re.compile("(?<=[a-z])[\u0300-\u036f]+")
_APOSTROPHES = re.compile("['’‘ʼ´`]")
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_SPACE_OF_NO_NUMBER = re.compile(r"(?<!\d) | (?!\d)")


@dataclass(frozen=True)
class _Index:
    """Ids of one model's classes by their names, from the strictest reading to the most lenient one."""

    exact: Mapping[str, int]
    folded: Mapping[str, int]
    normalized: Mapping[str, int]

    def find(self, name: str) -> int | None:
        for read, ids in ((str, self.exact), (folded, self.folded), (normalized, self.normalized)):
            key = read(name)
            if key and (index := ids.get(key)) is not None:
                return index
        return None


@lru_cache(maxsize=64)
def _index_of(labels: tuple[str, ...]) -> _Index:
    """Index `labels`; of two that read alike, the one with the lower id wins."""
    numbered = list(reversed(list(enumerate(labels))))
    return _Index(*({read(label): index for index, label in numbered} for read in (str, folded, normalized)))


def label_id(name: str, model: ModelInfo, param: str = "prompt") -> int:
    """Return the id of the class with this name or id. Raises InvalidRequest, which names the closest classes."""
    label = find_class(name, model.labels)
    if label is None:
        message = f"Unknown class {quoted(name)} for model {model.name}. {allowed_classes(name, model.labels)}"
        raise InvalidRequest(message, param=param, code=ErrorCode.UNKNOWN_CLASS)
    return label


def find_class(name: str, labels: tuple[str, ...]) -> int | None:
    """Return the position of the label that `name` stands for; a name wins, so classes may be named by digits."""
    label = _index_of(labels).find(name)
    if label is None and (digits := _ID.fullmatch(name.strip())) and int(digits[0]) < len(labels):
        return int(digits[0])
    return label


def allowed_classes(name: str, labels: tuple[str, ...]) -> str:
    """Say what may be sent instead of `name`, which no class has."""
    ids = _index_of(labels).folded
    closest = [labels[ids[match]] for match in _closest(folded(spelled_out(name)), ids)]
    examples = f"Closest: {_listed(closest)}." if closest else f"Examples: {_listed(labels[:5])}."
    return f"Allowed: one of its {len(labels)} class names, or an id from 0 to {len(labels) - 1}. {examples}"


def folded(name: str) -> str:
    """Return `name` in one case and one Unicode form, without surrounding whitespace."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def normalized(name: str) -> str:
    """Return the letters and digits of `name`, an emoji by its name; empty if it has no letter.

    Case, accents of Latin letters, whitespace, punctuation and invisible characters do not count, except between two
    digits: "version 1.5" is not "version 15". A name without letters, such as "-1", is not read this way.
    """
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", spelled_out(name)).casefold())
    text = _APOSTROPHES.sub("", _LATIN_ACCENTS.sub("", text))
    words = _PUNCTUATION.sub(_spacing, text).split()
    key = _SPACE_OF_NO_NUMBER.sub("", " ".join(words))
    return key if any(character.isalpha() for character in key) else ""


def spelled_out(name: str) -> str:
    """Return the name of an emoji (Unicode CLDR's, without punctuation), in any skin tone; any other text unchanged."""
    return name if name.isascii() else _emoji_names().get(_VARIANTS.sub("", name.strip()), name)


@cache
def _emoji_names() -> dict[str, str]:
    names: dict[str, str] = json.loads((files("msf_server") / "emoji_names.json").read_text("utf-8"))
    return names


def _spacing(mark: re.Match[str]) -> str:
    match unicodedata.category(mark[0]):
        case "Cf":  # invisible, such as a zero-width space
            return ""
        case category if category.startswith("P"):
            return " "
    return mark[0]  # a symbol, or a vowel sign of a script that has them


def _closest(name: str, candidates: Iterable[str]) -> list[str]:
    """Return similar names; difflib is too slow for thousands, so it ranks those that share the most letter pairs."""
    pairs = set(pairwise(name))
    likely = heapq.nlargest(50, candidates, key=lambda candidate: len(pairs.intersection(pairwise(candidate))))
    return difflib.get_close_matches(name, likely, n=5, cutoff=0.5)


def _listed(labels: Iterable[str]) -> str:
    return ", ".join(map(quoted, labels))
