"""Page cipher and page digest against the library's own XTS and HMAC, page by page."""

from __future__ import annotations

import hashlib
import hmac
import os

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, strategies as st

from sealpoint.criusec.cipher import PAGE, DecryptionError, Messages, PageDigest, Pages

KEY, IV, TOKEN = (hashlib.shake_256(bytes([n])).digest(size) for n, size in enumerate((64, 16, 32)))


def standard(data: bytes, *, encrypt: bool) -> bytes:
    """AES-256-XTS of each page by a new context, as the library documents it."""
    cipher = Cipher(algorithms.AES(KEY), modes.XTS(IV))
    out = b""
    for at in range(0, len(data), PAGE):
        context = cipher.encryptor() if encrypt else cipher.decryptor()
        out += context.update(data[at : at + PAGE]) + context.finalize()
    return out


def whole(pages: Pages, data: bytes, *, encrypt: bool) -> bytes:
    out = bytearray(len(data))
    (pages.encrypt if encrypt else pages.decrypt)(data, memoryview(out))
    return bytes(out)


@pytest.mark.parametrize("reusable", [True, False])
@pytest.mark.parametrize("encrypt", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 257])
def test_pages_are_standard_xts_whichever_way_the_library_allows(count, encrypt, reusable):
    pages = Pages(KEY, IV)
    pages._reusable = reusable
    data = os.urandom(count * PAGE)
    assert whole(pages, data, encrypt=encrypt) == standard(data, encrypt=encrypt)


def test_a_library_that_goes_on_with_the_tweak_gets_a_new_context_for_each_page(monkeypatch):
    """What the fast way relies on is looked at, not believed."""

    def carries_on(self, data, out, *, encrypt):
        for at in range(0, len(data), PAGE):
            tweak = (int.from_bytes(IV, "little") + at).to_bytes(16, "little")
            cipher = Cipher(algorithms.AES(KEY), modes.XTS(tweak))
            context = cipher.encryptor() if encrypt else cipher.decryptor()
            out[at : at + PAGE] = context.update(data[at : at + PAGE])

    def refuses(self, data, out, *, encrypt):
        raise ValueError("one call only")

    data = os.urandom(3 * PAGE)
    for library in (carries_on, refuses):
        monkeypatch.setattr(Pages, "_reused", library)
        pages = Pages(KEY, IV)
        assert not pages._reusable
        assert whole(pages, data, encrypt=True) == standard(data, encrypt=True)


def test_the_fast_way_is_taken_here():
    assert Pages(KEY, IV)._reusable


def test_equal_pages_have_equal_ciphertext_as_in_the_reference():
    out = whole(Pages(KEY, IV), bytes(2 * PAGE), encrypt=True)
    assert out[:PAGE] == out[PAGE:]


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE + 16])
def test_parts_of_pages_are_refused(size):
    with pytest.raises(ValueError):
        Pages(KEY, IV).decrypt(bytes(size), memoryview(bytearray(size)))


@given(st.lists(st.tuples(st.integers(0, 2**64 - 4 * PAGE), st.integers(1, 4)), max_size=5))
def test_the_digest_is_the_sum_of_hmacs(runs):
    digest, expected = PageDigest(TOKEN), 0
    for number, (address, count) in enumerate(runs):
        data = hashlib.shake_256(bytes([number])).digest(count * PAGE)
        digest.add(data, address)
        for at in range(0, len(data), PAGE):
            covered = data[at : at + PAGE] + (address + at).to_bytes(8, "little") + bytes(4)
            one = hmac.digest(TOKEN, covered, "sha256")
            expected ^= int.from_bytes(one, "big")
    assert digest.value == expected.to_bytes(32, "big")


def test_a_page_that_counts_twice_counts_for_nothing():
    digest = PageDigest(TOKEN)
    digest.add(bytes(PAGE), 0x1000)
    digest.add(bytes(PAGE), 0x1000)
    assert digest.value == bytes(32)


@given(st.binary(max_size=100), st.integers(0, 200))
def test_no_bit_of_a_message_can_be_changed(data, position):
    messages = Messages(TOKEN)
    parts = list(messages.seal(data))
    assert messages.open(*parts) == data
    part = position % 3
    if parts[part]:
        changed = bytearray(parts[part])
        changed[position % len(changed)] ^= 1 << position % 8
        parts[part] = bytes(changed)
        with pytest.raises(DecryptionError):
            messages.open(*parts)
