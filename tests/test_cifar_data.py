"""CIFAR-10 and CIFAR-100 files: what is read, what is refused, what is fetched."""

import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lca_widgets.data import cifar, cifar_editions, download_cifar
from lca_widgets.data.cifar_editions import EDITIONS, Archive, md5_of
from tests.cifar_files import cifar_images, edition_of, encoded, publish, release, write_cifar

FORMATS = [(edition.classes, edition.kind) for edition in EDITIONS]

every_format = pytest.mark.parametrize(("classes", "kind"), FORMATS)


# What is published


def test_the_published_files_are_named_with_their_sizes():
    sizes = {
        file.name: file.images * edition.record
        for edition in EDITIONS
        for file in edition.files
        if edition.kind == "binary"
    }
    batches = {f"data_batch_{k}.bin": 30_730_000 for k in range(1, 6)}
    assert sizes == {
        **batches,
        "test_batch.bin": 30_730_000,
        "train.bin": 153_700_000,
        "test.bin": 30_740_000,
    }


def test_every_published_checksum_is_another_one():
    sums = [file.md5 for edition in EDITIONS for file in edition.files]
    sums += [edition.archive.md5 for edition in EDITIONS]
    assert len(set(sums)) == len(sums) == 20
    assert all(len(value) == 32 and int(value, 16) for value in sums)


# What is read


@every_format
def test_every_format_gives_back_the_images_and_the_classes(tmp_path, classes, kind):
    place = write_cifar(tmp_path, classes=classes, train=23, test=7, kind=kind)
    data = cifar(tmp_path)
    assert (data.name, data.classes, data.published) == (f"CIFAR-{classes}", classes, False)
    for part, n, first in ((data.train, 23, 0), (data.test, 7, 23)):
        images, labels = cifar_images(n, classes=classes, first=first)
        assert len(part) == n
        assert (part.x.dtype, part.y.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(part.x, images)
        assert part.y.tolist() == labels.tolist()
    assert torch.equal(cifar(str(place), classes=classes).train.x, data.train.x)


def test_planes_are_red_green_blue_and_pixels_go_row_by_row(tmp_path):
    plane = [
        bytes([start + row] * 16 + [row] * 16) for start in (50, 100, 150) for row in range(32)
    ]
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(b"\x03\x11" + b"".join(plane))
    [image] = cifar(tmp_path).train.x
    for colour, start in enumerate((50, 100, 150)):
        assert image[colour, :, 0].tolist() == list(range(start, start + 32))
        assert image[colour, :, 15].tolist() == list(range(start, start + 32))
        assert image[colour, :, 16].tolist() == list(range(32))


def test_the_batches_follow_each_other_in_the_order_of_their_numbers(tmp_path):
    place = write_cifar(tmp_path)
    for k in range(1, 6):
        (place / f"data_batch_{k}.bin").write_bytes(bytes([k]) + bytes(3072))
    assert cifar(tmp_path).train.y.tolist() == [1, 2, 3, 4, 5]


def python_2_pickle(labels, pixels):
    """What Python 2 and the NumPy of its time wrote: byte strings, classes under old names."""

    def word(text):
        return b"U" + bytes([len(text)]) + text

    def whole(*numbers):
        return b"".join(b"K" + bytes([n]) if n >= 0 else b"J\xff\xff\xff\xff" for n in numbers)

    kind = (
        b"cnumpy\ndtype\n(" + word(b"u1") + whole(0, 1) + b"tR("
        + whole(3) + word(b"|") + b"NNN" + whole(-1, -1, 0) + b"tb"
    )  # fmt: skip
    size = len(pixels).to_bytes(4, "little")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + whole(0) + b"\x85"
        + word(b"b") + b"tR(" + whole(1) + whole(len(labels)) + b"M\x00\x0c\x86" + kind
        + b"\x89T" + size + pixels + b"tb"
    )  # fmt: skip
    items = word(b"data") + array + word(b"labels") + b"](" + whole(*labels) + b"e"
    return b"\x80\x02}(" + items + b"u."


def test_a_pickle_of_python_2_is_read(tmp_path):
    place = write_cifar(tmp_path, kind="python")
    pixels = np.arange(2 * 3072).astype(np.uint8)
    (place / "test_batch").write_bytes(python_2_pickle([7, 2], pixels.tobytes()))
    # The hand-made pickle is one that NumPy itself reads alike.
    known = pickle.loads((place / "test_batch").read_bytes(), encoding="bytes")
    assert np.array_equal(known[b"data"], pixels.reshape(2, 3072))
    test = cifar(tmp_path).test
    assert test.y.tolist() == [7, 2]
    assert np.array_equal(test.x.flatten(), pixels)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_subset_may_be_written_with_any_of_the_older_protocols(tmp_path, protocol, order):
    place = write_cifar(tmp_path, kind="python")
    images, labels = cifar_images(3)
    content = {b"data": np.asarray(images.reshape(3, -1), order=order), b"labels": labels}
    (place / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    test = cifar(tmp_path).test
    assert np.array_equal(test.x, images)
    assert test.y.tolist() == labels.tolist()


def test_what_was_read_may_be_written_to(tmp_path):
    write_cifar(tmp_path)
    data = cifar(tmp_path)
    data.test.x.add_(1)
    assert torch.equal(data.test.x, cifar(tmp_path).test.x + 1)


# Which set is read


def test_binary_files_are_preferred(tmp_path):
    write_cifar(tmp_path, train=5, test=1, kind="python")
    assert len(cifar(tmp_path).train) == 5
    place = write_cifar(tmp_path, train=10, test=1, kind="binary")
    assert len(cifar(tmp_path).train) == 10
    (place / "test_batch.bin").unlink()
    assert len(cifar(tmp_path).train) == 5


def test_of_two_sets_the_one_asked_for_is_read(tmp_path):
    write_cifar(tmp_path, classes=10)
    write_cifar(tmp_path, classes=100, kind="python")
    assert [cifar(tmp_path, classes=n).name for n in (10, 100)] == ["CIFAR-10", "CIFAR-100"]
    words = "holds CIFAR-10 and CIFAR-100: say which is meant with classes=10 or classes=100"
    with pytest.raises(ValueError, match=words):
        cifar(tmp_path)


@pytest.mark.parametrize("read", [cifar, download_cifar])
def test_arguments_of_another_kind_are_refused(read, tmp_path):
    with pytest.raises(ValueError, match="classes must be one of 10, 100, got 20"):
        read(tmp_path, classes=20)
    with pytest.raises(TypeError, match="folder must be the path of a folder, got 10"):
        read(10)


# What is missing


def test_a_missing_folder_is_named_with_all_that_was_looked_for_and_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        cifar(tmp_path / "nowhere")
    message = str(error.value)
    assert f"no whole CIFAR-10 or CIFAR-100 in '{tmp_path / 'nowhere'}': no such folder" in message
    for edition in EDITIONS:
        names = ", ".join(file.name for file in edition.files)
        assert f"looked for {names} there and in its folder {edition.folder}" in message
    assert "https://www.cs.toronto.edu/~kriz/cifar.html has cifar-10-binary.tar.gz (170052171" in (
        message
    )
    assert "cifar-100-binary.tar.gz (168513733 bytes, md5 03b5dce01913d631647c71ecec" in message
    assert "download_cifar(folder, classes=10), or the command's --download" in message


def test_only_the_set_asked_for_is_spoken_of(tmp_path):
    write_cifar(tmp_path, classes=10)
    with pytest.raises(FileNotFoundError, match="no whole CIFAR-100 in ") as error:
        cifar(tmp_path, classes=100)
    assert "data_batch" not in str(error.value)
    assert "cifar-10-" not in str(error.value)


@every_format
def test_a_set_that_lacks_a_file_is_refused(tmp_path, classes, kind):
    place = write_cifar(tmp_path, classes=classes, kind=kind)
    lost = edition_of(classes, kind).files[-2].name
    (place / lost).unlink()
    for folder in (tmp_path, place):
        with pytest.raises(FileNotFoundError) as error:
            cifar(folder)
        assert f"{place} lacks {lost}: all of them are needed" in str(error.value)


@every_format
def test_an_archive_that_was_not_unpacked_is_found(tmp_path, classes, kind):
    archive = tmp_path / edition_of(classes, kind).archive.name
    archive.touch()
    with pytest.raises(FileNotFoundError) as error:
        cifar(tmp_path)
    assert f"unpack it with tar -xzf {archive} -C {tmp_path}" in str(error.value)


# What is damaged


@pytest.mark.parametrize(
    ("classes", "name", "content", "words"),
    [
        (10, "test_batch.bin", b"", "is empty; expected a whole number of records of 3073 bytes"),
        (
            10,
            "data_batch_2.bin",
            bytes(3072),
            r"has 3072 bytes; .* records of 3073 bytes \(1 label",
        ),
        (10, "data_batch_2.bin", bytes(6147), "6147 bytes; .* published file has 30730000 bytes"),
        (100, "train.bin", bytes(3073), r"3073 bytes; .* 3074 bytes \(2 label bytes, 3072 pixels"),
        (
            10,
            "test_batch.bin",
            b"\x0a" + bytes(3072),
            "of 3073 bytes, has labels from 10 to 10, .*9",
        ),
        (
            100,
            "test.bin",
            b"\x03\x64" + bytes(3072),
            "has labels from 100 to 100, expected 0 to 99",
        ),
        (100, "test.bin", b"\x14\x63" + bytes(3072), "has labels from 20 to 20, expected 0 to 19"),
    ],
)
def test_a_damaged_binary_file_is_refused_by_name(tmp_path, classes, name, content, words):
    place = write_cifar(tmp_path, classes=classes)
    (place / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        cifar(tmp_path)
    assert str(place / name) in str(error.value)


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "must hold a dictionary, got list"),
        ({b"labels": [1, 2]}, r"lacks b'data', it holds \[b'labels'\]: a file of CIFAR-10 has"),
        ({"data": PIXELS}, r"lacks b'data' and b'labels', it holds \['data'\]"),
        ({b"data": PIXELS, b"fine_labels": [1, 2]}, "lacks b'labels', .* file of CIFAR-10 has b'd"),
        ({b"data": [0], b"labels": [1]}, "b'data' must be an array, got list"),
        ({b"data": PIXELS.astype("i8"), b"labels": [1, 2]}, r"\(n, 3072\), got int64 of .*2, 3072"),
        ({b"data": PIXELS[0], b"labels": [1]}, r"got uint8 of shape \(3072,\)"),
        ({b"data": PIXELS[:0], b"labels": []}, r"got uint8 of shape \(0, 3072\)"),
        ({b"data": PIXELS.astype("f4"), b"labels": [1, 2]}, "ValueError: numbers of type 'f4'"),
        ({b"data": PIXELS.astype(object), b"labels": [1, 2]}, "numbers of type 'O8'"),
        (
            {b"data": PIXELS, b"labels": [1, 2.0]},
            r"b'labels' must be a list of whole .* \[1, 2.0\]",
        ),
        ({b"data": PIXELS, b"labels": 3}, "b'labels' must be a list of whole numbers, got 3"),
        ({b"data": PIXELS, b"labels": [1]}, "has 2 images but 1 of b'labels'"),
        ({b"data": PIXELS, b"labels": [1, -1]}, "has labels from -1 to 1, expected 0 to 9"),
        ({b"data": PIXELS, b"labels": [1, 2**70]}, "has labels from 1 to 2147483648, expected 0"),
    ],
)
def test_a_pickle_of_something_else_is_refused_by_name(tmp_path, content, words):
    place = write_cifar(tmp_path, kind="python")
    (place / "data_batch_4").write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(ValueError, match=words) as error:
        cifar(tmp_path)
    assert str(place / "data_batch_4") in str(error.value)


@pytest.mark.parametrize("content", [b"", b"P", b"PK\x03\x04", b"\x80\x02}", b"\x80\x02N"])
def test_a_file_that_is_no_pickle_is_refused_by_name(tmp_path, content):
    place = write_cifar(tmp_path, kind="python")
    (place / "test_batch").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"test_batch (is empty; expected|cannot be read as) a pic"
    ):
        cifar(tmp_path)


def test_a_pickle_that_is_cut_short_is_refused(tmp_path):
    place = write_cifar(tmp_path, kind="python")
    whole = (place / "test_batch").read_bytes()
    for length in (len(whole) // 2, len(whole) - 1):
        (place / "test_batch").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="test_batch cannot be read as a pickle of images"):
            cifar(tmp_path)


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.mkdir, f"{os.name}.mkdir"), (eval, "builtins.eval"), (np.load, "numpy.load")],
)
def test_a_pickle_cannot_run_anything(tmp_path, monkeypatch, function, name, protocol):
    place = write_cifar(tmp_path, kind="python")
    argument = {"eval": "__import__('os').mkdir('made')"}.get(function.__name__, "made")
    content = {b"data": Calls(function, argument)}
    text = pickle.dumps(content, protocol=protocol).replace(b"__builtin__", b"builtins")
    (place / "data_batch_1").write_bytes(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"data_batch_1 asks for '{name}', which a file of images"):
        cifar(tmp_path)
    assert not Path("made").exists()


def test_an_array_of_objects_is_never_built(tmp_path):
    # NumPy would take these numbers for the addresses of objects.
    forged = pickle.dumps({b"data": PIXELS, b"labels": [1, 2]}, protocol=2)
    for kind in (b"O8", b"V8"):
        place = write_cifar(tmp_path, kind="python")
        assert forged.count(b"X\x02\x00\x00\x00u1") == 1
        changed = forged.replace(b"X\x02\x00\x00\x00u1", b"X\x02\x00\x00\x00" + kind)
        (place / "test_batch").write_bytes(changed)
        with pytest.raises(ValueError, match=f"numbers of type '{kind.decode()}'"):
            cifar(tmp_path)


def test_the_newest_pickles_are_refused_with_the_remedy(tmp_path):
    place = write_cifar(tmp_path, kind="python")
    content = {b"data": PIXELS, b"labels": [1, 2]}
    (place / "test_batch").write_bytes(pickle.dumps(content, protocol=5))
    with pytest.raises(ValueError, match=r"numeric\._frombuffer'.* with pickle protocol 2 to 4"):
        cifar(tmp_path)


# Checksums


@every_format
def test_files_with_the_published_checksums_are_the_published_set(
    tmp_path, monkeypatch, classes, kind
):
    place = write_cifar(tmp_path, classes=classes, kind=kind)
    publish(monkeypatch, place, classes, kind)
    assert cifar(tmp_path).published


@every_format
def test_a_changed_pixel_is_noticed_in_a_file_of_the_published_size(
    tmp_path, monkeypatch, classes, kind
):
    place = write_cifar(tmp_path, classes=classes, kind=kind)
    file = publish(monkeypatch, place, classes, kind).files[-1]
    images, labels = cifar_images(50, classes=classes, first=250)
    images[3, 1, 4, 1] ^= 1
    content = encoded(images, labels, classes, kind)
    assert len(content) == (place / file.name).stat().st_size
    (place / file.name).write_bytes(content)
    words = f"{file.name} is damaged: .* published 50 images.* {md5_of(content)} .* {file.md5}"
    with pytest.raises(ValueError, match=words):
        cifar(tmp_path)


@every_format
def test_a_set_with_one_file_of_another_size_is_not_the_published_one(
    tmp_path, monkeypatch, classes, kind
):
    place = write_cifar(tmp_path, classes=classes, kind=kind)
    file = publish(monkeypatch, place, classes, kind).files[0]
    images, labels = cifar_images(3, classes=classes)
    (place / file.name).write_bytes(encoded(images, labels, classes, kind))
    assert not cifar(tmp_path).published


# Downloads


@pytest.fixture(params=[10, 100])
def served(tmp_path, monkeypatch, request):
    """A folder with a small set as it is published, served; and the number of its classes."""
    with release(monkeypatch, tmp_path / "server", request.param):
        yield tmp_path / "server", request.param


def archive_of(served):
    folder, classes = served
    return folder / edition_of(classes, "binary").archive.name


def files_under(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_download_unpacks_the_sets_files_alone(served, tmp_path):
    folder, classes = served
    edition = edition_of(classes, "binary")
    place = download_cifar(tmp_path / "new" / "data", classes=classes)
    assert place == tmp_path / "new" / "data" / edition.folder
    names = [f"{edition.folder}/{file.name}" for file in edition.files]
    assert files_under(tmp_path / "new" / "data") == sorted([edition.folder, *names])
    data = cifar(tmp_path / "new" / "data")
    assert (data.classes, data.published) == (classes, True)
    assert torch.equal(data.train.x, cifar(folder).train.x)


def test_files_that_are_all_there_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_editions, "BASE_URL", "http://127.0.0.1:1/")
    for kind in ("python", "binary"):
        place = write_cifar(tmp_path / kind, kind=kind)
        before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
        assert download_cifar(tmp_path / kind) == place
        assert download_cifar(place) == place
        assert before == {path: path.stat().st_mtime_ns for path in place.iterdir()}


def test_a_download_adds_what_is_missing_beside_the_rest(tmp_path, monkeypatch):
    with release(monkeypatch, tmp_path / "server"):
        place = write_cifar(tmp_path / "data")
        (place / "test_batch.bin").unlink()
        (place / "data_batch_3.bin").write_bytes(b"my own")
        assert download_cifar(place) == place
    assert (place / "data_batch_3.bin").read_bytes() == b"my own"
    assert files_under(place) == sorted(file.name for file in edition_of(10, "binary").files)


def cut(content):
    return content[:-100]


def changed(content):
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


def longer(content):
    return content + bytes(3 * 2**20)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "was cut short: expected .* bytes with the md5 checksum"),
        (changed, "is not what is published: expected .* bytes with the md5 checksum"),
        (longer, "is not what is published: expected .* bytes .* got more with"),
    ],
)
def test_a_damaged_download_is_refused_and_leaves_nothing(served, tmp_path, damage, words):
    archive = archive_of(served)
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ValueError, match=words) as error:
        download_cifar(tmp_path / "data", classes=served[1])
    assert archive.name in str(error.value)
    assert "nothing was kept" in str(error.value)
    assert files_under(tmp_path / "data") == []


def test_an_archive_that_cannot_be_fetched_is_named_and_leaves_nothing(served, tmp_path):
    archive_of(served).unlink()
    with pytest.raises(
        ConnectionError, match=r"tar\.gz could not be fetched: HTTPError: HTTP .*404"
    ):
        download_cifar(tmp_path / "data", classes=served[1])
    assert files_under(tmp_path / "data") == []


def test_an_interrupted_download_leaves_nothing(served, tmp_path, monkeypatch):
    class Interrupted:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def __init__(self, fault):
            self.answers = [b"first bytes"]
            self.fault = fault

        def read(self, size):
            if self.answers:
                return self.answers.pop()
            raise self.fault

    for fault, seen in (
        (KeyboardInterrupt(), KeyboardInterrupt),
        (TimeoutError("timed out"), ConnectionError),
    ):
        monkeypatch.setattr(
            "urllib.request.urlopen", lambda *_, fault=fault, **__: Interrupted(fault)
        )
        with pytest.raises(seen) as error:
            download_cifar(tmp_path / "data", classes=served[1])
        assert files_under(tmp_path / "data") == []
    assert "TimeoutError: timed out, after 11 of " in str(error.value)
    assert "nothing was kept" in str(error.value)


@pytest.mark.parametrize("fault", ["missing", "link", "not gzip", "cut"])
def test_an_archive_of_other_content_is_refused_and_leaves_nothing(
    served, tmp_path, monkeypatch, fault
):
    folder, classes = served
    path, edition = archive_of(served), edition_of(classes, "binary")
    with tarfile.open(path, "w:gz") as tar:
        for file in edition.files[1:]:
            tar.add(folder / edition.folder / file.name, f"../{edition.folder}/{file.name}")
        if fault == "link":
            link = tarfile.TarInfo(f"{edition.folder}/{edition.files[0].name}")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    content = {"not gzip": b"plain", "cut": path.read_bytes()[:-50]}.get(fault, path.read_bytes())
    path.write_bytes(content)
    archive = Archive(path.name, len(content), md5_of(content))
    others = [other for other in EDITIONS if other.archive.name != path.name]
    monkeypatch.setattr(cifar_editions, "EDITIONS", (replace(edition, archive=archive), *others))
    with pytest.raises(
        ValueError, match=r"tar\.gz (has no regular file cifar-|cannot be unpacked)"
    ):
        download_cifar(tmp_path / "data", classes=classes)
    assert files_under(tmp_path / "data") == []
    assert files_under(tmp_path) == sorted(
        ["data", "server", *(f"server/{name}" for name in files_under(folder))]
    )
