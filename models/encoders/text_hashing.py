"""Words and channel names as hashed numbers: no vocabulary file, any language, the same in every process."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

WORDS_MAX = 32  # of one caption; the rest is ignored
PIECES_MAX = 12  # the word and its 3-grams
CHANNEL_PIECES_MAX = 24
CHARACTERS_MAX = 2_000  # of one caption: more than WORDS_MAX words hold in practice
_WORD = re.compile(r"\w+")
_SEGMENT = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
EMPTY = "\x00empty"  # the only word of a caption without any, so that every caption has one


@dataclass(frozen=True, slots=True)
class CaptionWords:
    """One caption, W >= 1 words."""

    pieces: NDArray[np.int64]  # (W, PIECES_MAX) rows of the table, 0 = padding
    sketch: NDArray[np.float32]  # (PRIVATE_DIM,) of the bag of words

    def __len__(self) -> int:
        return len(self.pieces)


def stable_hash(text: str) -> int:
    """64 bits, the same in every process (Python's own `hash` is salted)."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def bucket(text: str, buckets: int) -> int:
    """A row 1..buckets-1 of a table; row 0 is padding."""
    return 1 + stable_hash(text) % (buckets - 1)


def signs(text: str, dim: int) -> NDArray[np.float32]:
    """(dim,) of +1 and -1 by the hash of `text`, a random direction; dim: a multiple of 8, at most 512."""
    raw = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=dim // 8, person=b"signs").digest()
    bits = np.unpackbits(np.frombuffer(raw, np.uint8))
    return bits.astype(np.float32) * 2 - 1


def words(text: str) -> list[str]:
    """At most WORDS_MAX case-folded words of a caption, at least one (EMPTY)."""
    folded = unicodedata.normalize("NFKC", text[:CHARACTERS_MAX]).casefold()
    return _WORD.findall(folded)[:WORDS_MAX] or [EMPTY]


def _trigrams(word: str) -> list[str]:
    marked = f"<{word}>"
    return [marked[i : i + 3] for i in range(len(marked) - 2)]


@lru_cache(maxsize=16_384)
def word_pieces(word: str, buckets: int) -> tuple[int, ...]:
    """Table rows of a word: itself and its 3-grams, at most PIECES_MAX."""
    pieces = [f"w:{word}"] + [f"g:{gram}" for gram in _trigrams(word)]
    return tuple(bucket(piece, buckets) for piece in pieces[:PIECES_MAX])


@lru_cache(maxsize=16_384)
def word_signs(word: str, dim: int) -> NDArray[np.float32]:
    """The word's direction in a sketch, (dim,); words of up to three letters have less weight."""
    weighted: NDArray[np.float32] = signs(f"w:{word}", dim) * np.float32(1.0 if len(word) > 3 else 0.3)
    weighted.flags.writeable = False
    return weighted


@lru_cache(maxsize=16_384)
def channel_pieces(name: str, unit: str, buckets: int) -> tuple[int, ...]:
    """Table rows of a channel: whole name, unit, segments ("pump3.vib.x" -> pump, 3, vib, x) and their 3-grams."""
    segments = [s.casefold() for s in _SEGMENT.findall(_CAMEL.sub(" ", name[:200]))]
    pieces = [f"n:{name}", f"u:{unit}"] + [f"s:{s}" for s in segments]
    pieces += [f"g:{gram}" for s in segments if not s.isdigit() for gram in _trigrams(s)]
    return tuple(bucket(piece, buckets) for piece in pieces[:CHANNEL_PIECES_MAX])


@lru_cache(maxsize=16_384)
def channel_signs(name: str, dim: int) -> NDArray[np.float32]:
    """The channel's direction in a sketch, (dim,)."""
    direction = signs(f"n:{name}", dim)
    direction.flags.writeable = False
    return direction
