"""noise-v1 in NumPy: standard normals from (seed, chain, draw, tag, element) by Philox4x32-10 and Box-Muller.

An independent reading of the standard, written to be read beside it: integers are mod 2^32, every
floating-point operation is binary32 rounded once. Every backend gives these bits.

Source of the generator: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
2011.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ulam_kernels.reference.arithmetic import Float32Array, fma, mul, polynomial, sqrt, sub

UInt64Array = npt.NDArray[np.uint64]
UInt32Array = npt.NDArray[np.uint32]
Words = tuple[UInt64Array, UInt64Array, UInt64Array, UInt64Array]  # four words below 2^32 held in 64 bits

DOMAIN = np.uint64(0xB7E151628AED2A6A)  # keeps our keys apart from other users of Philox keyed by the bare seed
REKEY_COUNTER = 0xF0000000  # tag 15
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
CHUNK = 1 << 15  # Philox calls evaluated together; keeps the intermediate arrays in cache


def _constants(*values: str) -> tuple[np.float32, ...]:
    return tuple(np.float32(float.fromhex(value)) for value in values)


# ln(1 + f) / f times -2, then sin(pi/2 v) / v and cos(pi/2 v) in v^2; highest power first.
LOG_POLYNOMIAL = _constants(
    "-0x1.1f28p-2", "0x1.3b0c5cp-2", "-0x1.1ea89ap-2", "0x1.5038p-2", "-0x1.99d3bp-2",
    "0x1.00144ep-1", "-0x1.5554fcp-1", "0x1.ffffd6p-1", "-0x1p+1",
)  # fmt: skip
SIN_POLYNOMIAL = _constants("0x1.3912a8p-13", "-0x1.31fbf4p-8", "0x1.466504p-4", "-0x1.4abba2p-1", "0x1.921fb4p+0")
COS_POLYNOMIAL = _constants(
    "-0x1.889fc6p-16", "0x1.e0a1e2p-11", "-0x1.55cd26p-6", "0x1.03c1d4p-2", "-0x1.3bd3ccp+0", "0x1p+0"
)
U01_SCALE, U01_OFFSET = _constants("0x1.fffffep-33", "0x1p-33")
MINUS_TWO_LN2 = _constants("-0x1.62e43p-23")[0]  # times 2^23: the exponent arrives scaled by 2^23
ANGLE_UNIT = _constants("0x1p-31")[0]


def philox4x32(counter: Words, key: tuple[UInt64Array, UInt64Array], rounds: int = 10) -> Words:
    """Philox4x32 on arrays that broadcast together: four counter and two key words to four output words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (product1 >> HALF) ^ c1 ^ k0,
            product1 & LOW,
            (product0 >> HALF) ^ c3 ^ k1,
            product0 & LOW,
        )
        k0 = (k0 + np.uint64(0x9E3779B9)) & LOW
        k1 = (k1 + np.uint64(0xBB67AE85)) & LOW
    return c0, c1, c2, c3


def chain_key(seed: UInt64Array, draw: UInt64Array) -> tuple[UInt64Array, UInt64Array]:
    """The key of each chain: from its seed, and from the upper half of the draw where that is not 0."""
    key = seed ^ DOMAIN
    k0, k1 = key & LOW, key >> HALF
    upper = draw >> HALF
    zero = np.zeros_like(upper)
    o0, o1, _, _ = philox4x32((zero + np.uint64(REKEY_COUNTER), upper, zero, zero), (k0, k1))
    return np.where(upper == 0, k0, o0), np.where(upper == 0, k1, o1)


def words(seed: UInt64Array, chain: UInt64Array, draw: UInt64Array, tag: int, block: UInt64Array) -> UInt32Array:
    """Random words ``[chains, blocks, 4]``; seed, chain and draw are ``[chains]``, block is ``[blocks]``."""
    k0, k1 = (half[:, None] for half in chain_key(seed, draw))
    counter = (
        np.uint64(tag << 28) | block[None, :],
        (draw & LOW)[:, None],
        (chain & LOW)[:, None],
        (chain >> HALF)[:, None],
    )
    return np.stack(np.broadcast_arrays(*philox4x32(counter, (k0, k1))), axis=-1).astype(np.uint32)


def u01(x: UInt32Array) -> Float32Array:
    """A word as a uniform number in the open unit interval, ``[2^-33, 1 - 2^-24]``."""
    return fma(x.astype(np.float64).astype(np.float32), U01_SCALE, U01_OFFSET)


def radius(x: UInt32Array) -> Float32Array:
    """``sqrt(-2 ln u01(x))``, in [3.4527e-4, 6.76371]."""
    bits = u01(x).view(np.uint32)
    exponent = (bits - np.uint32(0x3F2AAAAB)) & np.uint32(0xFF800000)
    fraction = sub((bits - exponent).view(np.float32), np.float32(1))  # mantissa in [2/3, 4/3) less 1
    scaled_exponent = exponent.view(np.int32).astype(np.float64).astype(np.float32)  # exponent * 2^23, exact
    logarithm = mul(polynomial(LOG_POLYNOMIAL, fraction), fraction)
    return sqrt(fma(scaled_exponent, MINUS_TWO_LN2, logarithm))


def circle(x: UInt32Array) -> tuple[Float32Array, Float32Array]:
    """``(cos, sin)`` of a random angle: in [-pi/2, pi/2] by the low 31 bits, mirrored by the top bit."""
    doubled = (x << np.uint32(1)).view(np.int32).astype(np.float64).astype(np.float32)
    v = fma(doubled, ANGLE_UNIT, ANGLE_UNIT)
    square = mul(v, v)
    sine = mul(polynomial(SIN_POLYNOMIAL, square), v)
    cosine = polynomial(COS_POLYNOMIAL, square).view(np.uint32) ^ (x & np.uint32(0x80000000))
    return cosine.view(np.float32), sine


def box_muller(word: UInt32Array) -> Float32Array:
    """Four words ``[..., 4]`` to four standard normals ``[..., 4]``."""
    r = radius(word[..., 0::2])
    cosine, sine = circle(word[..., 1::2])
    normal = np.empty(word.shape, dtype=np.float32)
    normal[..., 0::2] = mul(r, cosine)
    normal[..., 1::2] = mul(r, sine)
    return normal


def normals(
    seed: UInt64Array, chain: UInt64Array, draw: UInt64Array, *, tag: int, offset: int, count: int
) -> Float32Array:
    """Standard normals ``[chains, count]`` of elements ``offset .. offset + count - 1`` of each chain.

    ``seed``, ``chain`` and ``draw`` are ``[chains]`` uint64 (``draw = row * 16 + stage``); ``offset + count
    <= 2^30``.
    """
    out = np.empty((len(chain), count), dtype=np.float32)
    for chains, first, last in _tiles(len(chain), offset, offset + count):
        block = np.arange(first // 4, (last + 3) // 4, dtype=np.uint64)
        word = words(seed[chains], chain[chains], draw[chains], tag, block)
        skipped = first % 4
        normal = box_muller(word).reshape(len(word), -1)[:, skipped : skipped + last - first]
        out[chains, first - offset : last - offset] = normal
    return out


def _tiles(chains: int, start: int, stop: int) -> Iterator[tuple[slice, int, int]]:
    """Cut ``chains x [start, stop)`` into pieces of about CHUNK Philox calls that meet at multiples of 4."""
    if start == stop:
        return
    group = max(1, CHUNK * 4 // (stop - start))
    for chain in range(0, chains, group):
        first = start
        while first < stop:
            last = min(stop, first - first % 4 + CHUNK * 4)
            yield slice(chain, chain + group), first, last
            first = last
