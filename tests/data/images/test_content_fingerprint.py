"""One hash for what a data set's files hold, and the memo that spares reading them again."""

import os
import shutil

import pytest
from PIL import Image

from tcae_diffusers.data.images import content_fingerprint as module
from tcae_diffusers.data.images.content_fingerprint import content_digests, content_fingerprint

NAMES = ["a/0.bmp", "a/1.bmp", "b/2.bmp"]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TCAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "content"


@pytest.fixture
def settled(monkeypatch):
    """Files count as unchanging from the moment they are written."""
    monkeypatch.setattr(module, "_SETTLED_NS", 0)


@pytest.fixture
def reads(monkeypatch):
    """The files that were read, by name."""
    names, read = [], module.sha256_of_file
    monkeypatch.setattr(module, "sha256_of_file", lambda path: names.append(os.path.basename(path)) or read(path))
    return names


def images(root, *colors):
    """One uncompressed picture per name: all files have one size, whatever the colours."""
    for name, color in zip(NAMES, colors, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), color).save(root / name)
    return root


def test_other_pixels_of_equal_size_are_other_content(tmp_path):
    first = images(tmp_path / "first", "red", "green", "blue")
    second = images(tmp_path / "second", "red", "green", "cyan")
    assert [(first / name).stat().st_size for name in NAMES] == [(second / name).stat().st_size for name in NAMES]
    assert content_fingerprint(first, NAMES) != content_fingerprint(second, NAMES)


def test_a_copy_and_a_renamed_folder_are_the_same_content(tmp_path):
    first = images(tmp_path / "first", "red", "green", "blue")
    fingerprint = content_fingerprint(first, NAMES)
    assert content_fingerprint(shutil.copytree(first, tmp_path / "copy"), NAMES) == fingerprint
    assert content_fingerprint(first.rename(tmp_path / "renamed"), NAMES) == fingerprint


def test_names_and_order_count(tmp_path):
    root = images(tmp_path, "red", "green", "blue")
    fingerprints = {content_fingerprint(root, NAMES), content_fingerprint(root, NAMES[::-1])}
    shutil.copy(root / "a/0.bmp", root / "a/renamed.bmp")
    fingerprints.add(content_fingerprint(root, ["a/renamed.bmp", *NAMES[1:]]))
    assert len(fingerprints) == 3


def test_files_are_read_once_until_they_change(tmp_path, settled, reads):
    root = images(tmp_path / "images", "red", "green", "blue")
    first = content_fingerprint(root, NAMES)
    assert sorted(reads) == ["0.bmp", "1.bmp", "2.bmp"]
    assert content_fingerprint(root, NAMES) == first and len(reads) == 3
    times = os.stat(root / "a/1.bmp")
    Image.new("RGB", (16, 16), "yellow").save(root / "a/1.bmp")
    # Size and time of modification as before, as `rsync --times` leaves them.
    os.utime(root / "a/1.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content_fingerprint(root, NAMES) != first and reads[3:] == ["1.bmp"]


def test_a_folder_put_in_the_place_of_another_is_read(tmp_path, settled):
    root = images(tmp_path / "images", "red", "green", "blue")
    other = images(tmp_path / "other", "black", "gray", "white")
    for name in NAMES:
        for folder in (root, other):
            os.utime(folder / name, ns=(10**18, 10**18))
    expected = content_fingerprint(other, NAMES)
    assert content_fingerprint(root, NAMES) != expected
    shutil.rmtree(root)
    other.rename(root)
    assert content_fingerprint(root, NAMES) == expected


def test_a_file_written_just_now_is_not_trusted_to_stay(tmp_path, reads):
    root = images(tmp_path / "images", "red", "green", "blue")
    content_fingerprint(root, NAMES)
    content_fingerprint(root, NAMES)
    assert len(reads) == 6


def test_a_file_that_cannot_be_read_counts_as_such(tmp_path, settled):
    root = images(tmp_path / "images", "red", "green", "blue")
    (root / NAMES[1]).unlink()
    os.symlink(tmp_path / "nowhere", root / NAMES[1])
    good, broken, _ = content_digests([root / name for name in NAMES])
    assert len(good) == len(broken) == 32 and broken.startswith(b"cannot be read")
    assert content_digests([]) == []


def test_a_damaged_memo_is_named_and_passed_over(tmp_path, settled, cache_folder, reads, monkeypatch):
    root = images(tmp_path / "images", "red", "green", "blue")
    fingerprint = content_fingerprint(root, NAMES)
    (cache_folder / "sha256.sqlite").write_bytes(b"not a database" * 100)
    warnings = []
    monkeypatch.setattr(module.logger, "warning", warnings.append)
    assert content_fingerprint(root, NAMES) == fingerprint and len(reads) == 6
    assert len(warnings) == 1 and str(cache_folder) in warnings[0] and "TCAE_CACHE" in warnings[0]


def test_more_files_than_one_batch_keep_their_order(tmp_path, settled, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 8)
    monkeypatch.setattr(module, "_SHARE", 3)
    files = [tmp_path / f"{number}" for number in range(29)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
    digests = content_digests(files)
    assert digests == [module.hashlib.sha256(bytes([number])).digest() for number in range(29)]
    assert content_digests(files[::-1]) == digests[::-1]
