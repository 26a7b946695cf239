"""Philox, random arrays and dropout on CUDA, on every device there is."""

from __future__ import annotations

import math

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest

from adjoint.kernels import cuda
from adjoint.kernels.cuda import launch
from adjoint.kernels.cuda.kernel import Kernel
from adjoint.kernels.cuda.random import Philox
from cuda_on_host import HostLauncher, device_fixture, installed, needs_compiler, run_under_sanitizers, sanitizing

cuda_device = device_fixture()

DTYPES = ("float32", "float64", "float16", "bfloat16")


def philox_by_hand(counter, key):
    """Philox4x32-10 of Salmon et al., 2011, in Python's integers: four words for 128 bits of counter and 64 of key."""
    words, keys, mask = [counter >> 32 * i & 0xFFFFFFFF for i in range(4)], [key & 0xFFFFFFFF, key >> 32], 0xFFFFFFFF
    for _ in range(10):
        first, second = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [
            (second >> 32) ^ words[1] ^ keys[0], second & mask,
            (first >> 32) ^ words[3] ^ keys[1], first & mask,
        ]  # fmt: skip
        keys = [(keys[0] + 0x9E3779B9) & mask, (keys[1] + 0xBB67AE85) & mask]
    return words


def stream(device, seed=0, offset=0):
    return Philox(device.put(np.array([seed, offset], np.uint64).view(np.int64)))


def words_of(seed, offset, count):
    return np.array([philox_by_hand(offset + i, seed) for i in range(count)], np.uint64).reshape(-1)


# The lines "philox4x32 10" of Random123's kat_vectors: counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN)
def test_published_words(cuda_device, counter, key, wanted):
    def numbers(text):
        return np.array([int(word, 16) for word in text.split()], np.uint32)

    words = cuda_device.put(np.zeros(4, np.int32))
    given = [cuda_device.put(numbers(text).view(np.int64)) for text in (counter, key)]
    launch.launch(Kernel("random.cu", "philox_words"), (1,), (1,), (*given, words))
    np.testing.assert_array_equal(cuda_device.get(words).view(np.uint32), numbers(wanted))
    low, high = numbers(counter).astype(object).reshape(2, 2) @ [1, 2**32]
    assert philox_by_hand(int(low) + (int(high) << 64), int(numbers(key).astype(object) @ [1, 2**32])) == list(
        numbers(wanted)
    )


def test_uniform_numbers_are_the_words(cuda_device):
    seed, offset = 2**64 - 5, 2**33 - 2
    random = stream(cuda_device, seed, offset)
    for count in (1, 4, 1027):
        blocks = -(-count // 4)
        words = words_of(seed, offset, blocks)[:count]
        got = cuda_device.get(random.random((count,), np.float32))
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, (words >> np.uint64(8)) / np.float32(2**24))
        offset += blocks
    words = words_of(seed, offset, 4).astype(object).reshape(-1, 2) @ [1, 2**32]
    got = cuda_device.get(random.random((7,)))
    np.testing.assert_array_equal(got, [(int(word) >> 11) * 2.0**-53 for word in words[:7]])
    np.testing.assert_array_equal(
        cuda_device.get(random.place).view(np.uint64), np.array([seed, offset + 4], np.uint64)
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_numbers(cuda_device, dtype):
    count = 1 << 15
    got = cuda_device.get(stream(cuda_device, 3).standard_normal((count,), dtype)).astype(np.float64)
    assert abs(got.mean()) < 5 / math.sqrt(count) and abs(got.var() - 1) < 5 * math.sqrt(2 / count)
    for edge in (-2.0, -1.0, 0.0, 0.5, 1.0, 2.0):  # the empirical distribution, at Kolmogorov's distance
        assert abs((got < edge).mean() - 0.5 * math.erfc(-edge / math.sqrt(2))) < 2 / math.sqrt(count)
    assert abs((got[::2] * got[1::2]).mean()) < 5 / math.sqrt(count / 2)
    # Box and Muller, from the words
    words = words_of(3, 0, 1)
    if dtype == "float32":
        radius, angle = (
            math.sqrt(-2 * math.log((words[0] + 0.5) / 2**32)),
            2 * math.pi * (words[1] >> np.uint64(8)) / 2**24,
        )
        np.testing.assert_allclose(got[:2], [radius * math.cos(angle), radius * math.sin(angle)], rtol=1e-5)


def test_integers(cuda_device):
    random = stream(cuda_device, 9)
    got = cuda_device.get(random.integers(-3, 4, (7001,)))
    assert got.dtype == np.int64
    assert set(got) == set(range(-3, 4)) and np.bincount(got + 3).min() > 800
    wide = words_of(9, -(-7001 // 2), 1).astype(object).reshape(2, 2) @ [1, 2**32]
    got = cuda_device.get(random.integers(10, 10 + 2**62, (2,)))
    assert list(got) == [10 + (int(word) * 2**62 >> 64) for word in wide]
    got = cuda_device.get(stream(cuda_device, 9, 1).integers(-(2**63), 2**63 - 1, (1000,)))
    assert got.min() < -(2**62) and got.max() > 2**62 and abs(np.sign(got).mean()) < 0.2
    assert cuda_device.get(random.random((0, 3))).shape == (0, 3)
    with pytest.raises(ValueError, match="expected int64 and low < high"):
        random.integers(3, 3, (2,))


def kept_by_hand(seed, offset, p, count):
    return words_of(seed, offset, -(-count // 4))[:count] >= round(p * 2**32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3, 64, 1024, 2048 + 5])
@pytest.mark.parametrize("alpha", [False, True], ids=["plain", "alpha"])
def test_dropout(cuda_device, dtype, count, alpha):
    x = (np.random.default_rng(0).random(count) + 1).astype(dtype)
    random = stream(cuda_device, 11, 100)
    y, taken = cuda.dropout(cuda_device.put(x), 0.3, random, alpha)
    kept, wide = kept_by_hand(11, 100, 0.3, count), x.astype(np.float64)
    if alpha:
        saturated = -1.7580993408473766
        scale = (0.7 + saturated**2 * 0.3 * 0.7) ** -0.5
        wanted = scale * (np.where(kept, wide, saturated) - 0.3 * saturated)
    else:
        scale = 1 / 0.7
        wanted = np.where(kept, wide * scale, 0)
    tolerance = {"float32": 1e-6, "float64": 1e-15}.get(dtype, 1e-2)
    np.testing.assert_allclose(cuda_device.get(y).astype(np.float64), wanted, rtol=tolerance, atol=tolerance)
    for _ in range(2):  # regenerated, and no draw of its own
        grad = cuda.dropout_grad(cuda_device.put(x), 0.3, taken, alpha)
        np.testing.assert_allclose(cuda_device.get(grad).astype(np.float64), wide * kept * scale, rtol=tolerance)
    assert list(cuda_device.get(random.place)) == [11, 100 + -(-count // 4)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "view", [lambda a: a[1:], lambda a: a[::-1], lambda a: a[::2]], ids=["misaligned", "reversed", "strided"]
)
def test_any_layout(cuda_device, view, dtype):
    x = (np.random.default_rng(0).random(5000) + 1).astype(dtype)
    y, taken = cuda.dropout(view(cuda_device.put(x)), 0.4, stream(cuda_device, 5))
    plain, _ = cuda.dropout(cuda_device.put(view(x).copy()), 0.4, stream(cuda_device, 5))
    np.testing.assert_array_equal(cuda_device.get(y), cuda_device.get(plain))
    again = cuda.dropout_grad(view(cuda_device.put(x)), 0.4, taken)
    np.testing.assert_array_equal(cuda_device.get(again), cuda_device.get(plain))


@pytest.mark.parametrize("p", [0.0, 1e-12, 0.1, 0.5, 1 - 1e-12])
def test_the_share_that_is_kept(cuda_device, p):
    count = 1 << 16
    y, _ = cuda.dropout(cuda_device.put(np.ones(count, np.float32)), p, stream(cuda_device, 1))
    dropped = (cuda_device.get(y) == 0).sum()
    assert abs(dropped - count * p) <= 5 * math.sqrt(count * p * (1 - p)) + 1e-3


def test_nothing_to_drop(cuda_device):
    y, _ = cuda.dropout(cuda_device.put(np.ones((0, 4), np.float32)), 0.5, stream(cuda_device))
    assert cuda_device.get(y).shape == (0, 4)
    with pytest.raises(TypeError, match="random must be a Philox"):
        cuda.dropout(cuda_device.put(np.ones(3, np.float32)), 0.5, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"place must be int64 of the shape \(2,\), got float32 of \(3,\)"):
        Philox(cuda_device.put(np.ones(3, np.float32)))


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="needs more address space than the sanitizers leave")
def test_the_end_of_an_array_beyond_2_31_elements():
    count = 2**31 + 1000
    x = np.empty(count, np.float16)
    x[-2048:] = 1
    with installed(HostLauncher(ends_only=1)):
        y, _ = cuda.dropout(x, 0.5, Philox(np.array([3, 0], np.int64)))
    start = (count - 1000) // 4
    np.testing.assert_array_equal(y[-1000:], 2 * kept_by_hand(3, start, 0.5, 1000))


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the process that this is")
def test_under_sanitizers():
    result = run_under_sanitizers(__file__)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
