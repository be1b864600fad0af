"""Strings to int64 ids: once, where data are prepared, or while they are read; a caller repeats it in any language.

    id(s) = int64(XXH64(utf8(s), seed = 0))

XXH64 gives 64 bits that most libraries return as an unsigned integer; the id is the same 64 bits read as two's
complement, so an unsigned value u of 2^63 or more becomes u - 2^64. No Unicode normalisation, no trimming, no change of
case: equal bytes, equal id. For a caller to check against:

    id("") = -1205034819632174695      id("F") = -878615982807369771      id("é") = 1717938401253289848

Source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash


def string_id(text: str) -> int:
    """Return the signed 64-bit id of `text`, in [-2^63, 2^63).

    >>> string_id("F")
    -878615982807369771
    """
    return int(_ids([text.encode("utf-8")])[0])


def _ids(texts: list[bytes]) -> np.ndarray:
    """Return the ids of UTF-8 strings: their hashes, read as two's complement."""
    return np.fromiter((xxhash.xxh64_intdigest(text, seed=0) for text in texts), np.uint64, len(texts)).view(np.int64)


def string_ids(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return the ids of a column of strings; every distinct value is hashed once.

    Args:
        texts: (N,) strings, plain or dictionary-encoded; null stays null.

    Returns:
        (N,) int64 array.
    """
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    if not pa.types.is_dictionary(texts.type):
        texts = pc.dictionary_encode(texts)
    words = texts.dictionary.cast(pa.large_binary())
    ids = pa.array(_ids([text or b"" for text in words.to_pylist()]), mask=words.is_null().to_numpy(False))
    return ids.take(texts.indices)
