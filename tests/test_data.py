"""The data sets: shapes, splits, scale, and the errors of damaged files."""

import gzip
import os
import struct

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lca_widgets.data import Split, digits, ill_conditioned, load, mnist_format, table
from lca_widgets.data.mnist import MNIST_FILES

# digits


def test_digits_have_the_documented_shapes_and_types():
    data = digits()
    assert (data.name, data.features, data.classes) == ("digits", 64, 10)
    assert data.train.x.shape == (1437, 64)
    assert data.test.x.shape == (360, 64)
    assert len(data.train) == 1437
    assert data.train.x.dtype == torch.float32
    assert data.train.y.dtype == torch.int64
    assert sorted(data.train.y.unique().tolist()) == list(range(10))


def test_the_seed_fixes_the_split():
    assert digits(seed=1).train.x is not digits(seed=0).train.x
    assert not torch.equal(digits(seed=1).train.y, digits(seed=0).train.y)
    digits.cache_clear()
    first = digits(seed=1)
    digits.cache_clear()
    assert torch.equal(first.train.x, digits(seed=1).train.x)


def test_train_and_test_are_disjoint_and_complete():
    raw, data = load_digits().data, digits()
    x = torch.cat([data.train.x, data.test.x]).double().numpy()
    # Both have the same extremes in every pixel, if they hold the same images: undo the scale.
    spread = np.maximum(np.ptp(x, axis=0), 1e-30)
    x = ((x - x.min(axis=0)) / spread * np.ptp(raw, axis=0) + raw.min(axis=0)).round()
    assert len(np.unique(raw, axis=0)) == len(raw)
    assert (np.unique(x, axis=0) == np.unique(raw, axis=0)).all()
    counts = np.bincount(np.r_[data.train.y, data.test.y])
    assert counts.tolist() == np.bincount(load_digits().target).tolist()


def test_the_split_keeps_the_shares_of_the_classes():
    data = digits()
    for k in range(10):
        share = (data.test.y == k).double().mean() - (data.train.y == k).double().mean()
        assert abs(share) < 0.005


def test_features_are_standardised_by_the_training_part():
    data = digits()
    x = data.train.x.double()
    varying = x.std(dim=0) > 0
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(64).double(), rtol=0, atol=1e-6)
    deviation = x.std(dim=0, correction=0)[varying]
    torch.testing.assert_close(deviation, torch.ones_like(deviation), rtol=1e-5, atol=0)
    # Had the test part been scaled by itself, its means would vanish too.
    assert data.test.x.mean(dim=0).abs().max() > 0.01


def test_constant_pixels_are_zero():
    x = digits().train.x
    constant = (x == x[0]).all(dim=0)
    assert 3 <= constant.sum() <= 5
    assert (x[:, constant] == 0).all()
    assert constant[np.ptp(load_digits().data, axis=0) == 0].all()


def test_loading_leaves_the_global_random_state_alone():
    digits.cache_clear()
    before, numpy_before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    digits(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(np.random.get_state()) == numpy_before  # noqa: NPY002


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_outside_its_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed must be between 0 and 4294967295, got {seed}"):
        digits(seed=seed)


def test_first_takes_the_first_samples():
    train = digits().train
    part = train.first(5)
    assert torch.equal(part.x, train.x[:5])
    assert torch.equal(part.y, train.y[:5])
    assert len(train.first(1437)) == 1437


@pytest.mark.parametrize("n", [0, 1438])
def test_first_refuses_more_samples_than_there_are(n):
    with pytest.raises(ValueError, match=f"samples must be between 1 and 1437, got {n}"):
        digits().train.first(n)


# Raw tables


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("diabetes", (442, 10), None),
        ("wine", (178, 13), 3),
        ("breast-cancer", (569, 30), 2),
        ("digits", (1797, 64), 10),
    ],
)
def test_a_table_is_raw_and_says_what_it_holds(name, shape, classes):
    data = table(name)
    assert (data.name, tuple(data.x.shape), data.classes) == (name, shape, classes)
    assert len(data) == shape[0]
    assert len(data.features) == shape[1]
    assert data.x.dtype == torch.float64
    # In their units: nothing was centred, nothing scaled.
    assert data.x.mean(dim=0).abs().max() > 4
    if classes is None:
        assert data.y.dtype == torch.float64
        assert [data.y.min(), data.y.max()] == [25, 346]
    else:
        assert data.y.unique().tolist() == list(range(classes))


def test_the_columns_of_a_table_stand_under_their_names():
    diabetes = table("diabetes")
    age, sex = diabetes.x[:, diabetes.features.index("age")], diabetes.features.index("sex")
    assert [age.min(), age.max()] == [19, 79]
    assert diabetes.x[:, sex].unique().tolist() == [1, 2]
    assert torch.equal(table("digits").x, torch.from_numpy(load_digits().data))


def test_an_unknown_table_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"name must be one of 'diabetes', 'wine', .* got 'iris'"):
        table("iris")
    with pytest.raises(ValueError, match=r"name must be one of .* got \['wine'\]"):
        table(["wine"])


@pytest.mark.parametrize("kappa", [1.0, 30.0, 1e6])
def test_ill_conditioned_inputs_have_the_spectrum_asked_for(kappa):
    data = ill_conditioned(60, 5, kappa, seed=3)
    assert data.x.mean(dim=0).abs().max() < 1e-14
    eigenvalues = np.linalg.svd(data.x.numpy(), compute_uv=False) ** 2 / 60
    np.testing.assert_allclose(eigenvalues, kappa ** -np.linspace(0, 1, 5), rtol=1e-9)


def test_every_direction_explains_the_same_share_of_the_ill_conditioned_target():
    data = ill_conditioned(60, 5, 100.0)
    left, _, _ = np.linalg.svd(data.x.numpy(), full_matrices=False)
    shares = (left.T @ data.y.numpy()) ** 2 / 60
    np.testing.assert_allclose(shares, np.full(5, 1 / 5), rtol=1e-9)


def test_the_seed_draws_the_ill_conditioned_data():
    first, again, other = (ill_conditioned(20, 3, 10.0, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((5, 5, 10.0), "n must be at least 6, got 5"),
        ((5, 1, 10.0), "d must be at least 2, got 1"),
        ((5, 2, 0.5), "kappa must be between 1 and 1e.24, got 0.5"),
        ((5, 2, 10**400), "kappa must be between 1 and 1e.24, got 1000"),
    ],
)
def test_ill_conditioned_data_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ill_conditioned(*arguments)


# MNIST's format


def idx(values):
    values = np.asarray(values, dtype=np.uint8)
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return b"\x00\x00\x08" + bytes([values.ndim]) + sizes + values.tobytes()


RANDOM = np.random.default_rng(0)
PARTS = {
    "x_train": RANDOM.integers(1, 256, (30, 2, 3)),
    "y_train": np.arange(30) % 4,
    "x_test": RANDOM.integers(1, 256, (7, 2, 3)),
    "y_test": np.arange(7) % 3,
}
PARTS["x_train"][:, 0, 0] = 200  # a pixel that is constant, not zero


@pytest.fixture
def folder(tmp_path):
    """A small data set in MNIST's four files."""
    for part, values in PARTS.items():
        (tmp_path / MNIST_FILES[part]).write_bytes(idx(values))
    return tmp_path


def test_the_files_are_read_with_their_own_split(folder):
    data = load(folder)
    assert (data.name, data.features, data.classes) == (folder.name, 6, 4)
    assert (len(data.train), len(data.test)) == (30, 7)
    assert data.test.y.tolist() == PARTS["y_test"].tolist()
    flat = PARTS["x_train"].reshape(30, 6).astype(float)
    mean, deviation = flat.mean(axis=0), flat.std(axis=0)
    deviation[0] = 1
    expected = (PARTS["x_test"].reshape(7, 6) - mean) / deviation
    torch.testing.assert_close(data.test.x, torch.tensor(expected, dtype=torch.float32))


def test_the_seed_shuffles_images_together_with_their_labels(folder):
    orders = []
    flat = PARTS["x_train"].reshape(30, 6).astype(float)
    deviation = np.where(flat.std(axis=0) > 0, flat.std(axis=0), 1)
    for seed in (0, 1):
        train = mnist_format(folder, seed=seed).train
        raw = (train.x.double().numpy() * deviation + flat.mean(axis=0)).round()
        order = [int(np.abs(flat - image).sum(axis=1).argmin()) for image in raw]
        assert sorted(order) == list(range(30))
        assert train.y.tolist() == PARTS["y_train"][order].tolist()
        orders.append(order)
    assert orders[0] != orders[1]
    assert list(range(30)) not in orders


def test_a_constant_pixel_is_zero(folder):
    assert (mnist_format(folder).train.x[:, 0] == 0).all()


def test_gzipped_files_give_the_same_data(folder, tmp_path_factory):
    zipped = tmp_path_factory.mktemp("zipped")
    for name in MNIST_FILES.values():
        (zipped / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    plain, other = mnist_format(folder), mnist_format(zipped)
    assert torch.equal(plain.train.x, other.train.x)
    assert torch.equal(plain.test.y, other.test.y)


def test_a_file_that_changes_is_read_again(folder):
    before = mnist_format(folder)
    assert mnist_format(folder) is before
    images = folder / MNIST_FILES["x_test"]
    images.write_bytes(idx(PARTS["x_test"] // 2))
    os.utime(images, ns=(1, 1))
    assert not torch.equal(mnist_format(folder).test.x, before.test.x)


def test_a_relative_path_follows_the_working_directory(folder, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    for parent, source in ((other, folder), (folder, folder)):
        (parent / "set").mkdir()
        for part, name in MNIST_FILES.items():
            content = (source / name).read_bytes()
            if parent is other and part == "y_test":
                content = idx(PARTS["y_test"][::-1])
            (parent / "set" / name).write_bytes(content)
            os.utime(parent / "set" / name, ns=(1, 1))  # nothing but the folder tells them apart
    labels = []
    for parent in (other, folder):
        monkeypatch.chdir(parent)
        labels.append(load("set").test.y.tolist())
    assert labels[0] == labels[1][::-1] != labels[1]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"data must be 'digits' .*nowhere': no such folder"
    ):
        load(tmp_path / "nowhere")


def test_a_missing_file_is_named(folder):
    (folder / MNIST_FILES["y_test"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no t10k-labels-idx1-ubyte or t10k.*\.gz"):
        load(str(folder))


def test_data_of_another_type_is_refused():
    with pytest.raises(TypeError, match="data must be 'digits' or the path of a folder, got 5"):
        load(5)


def damaged(part, content):
    name = MNIST_FILES[part]
    return pytest.param(part, content, id=name)


@pytest.mark.parametrize(
    ("part", "content", "words"),
    [
        ("x_train", b"PK\x03\x04 zip", "not an IDX file of unsigned bytes"),
        ("x_train", b"", "not an IDX file"),
        ("x_train", b"\x00\x00\x0d" + idx(PARTS["x_train"])[3:], "not an IDX file of unsigned"),
        ("x_train", b"\x00\x00\x08\x00\x07", "not an IDX file"),
        ("y_train", idx(PARTS["y_train"])[:6], "cut short inside its header"),
        ("x_test", idx(PARTS["x_test"])[:-5], "is cut short: .* 7 × 2 × 3 values, it holds 37"),
        ("x_test", idx(PARTS["x_test"]) + b"++", "is too long: .* 7 × 2 × 3 .* it holds 44"),
        ("y_train", idx(PARTS["y_train"][:-1]), "has 30 images but train-labels.* has 29 labels"),
        ("y_test", idx(PARTS["y_test"][:-2]), "has 7 images but t10k-labels.* has 5 labels"),
        ("y_train", idx(PARTS["x_train"]), r"must hold labels, got values of shape \(30, 2, 3\)"),
        ("x_test", idx(PARTS["y_test"]), r"must hold images, got values of shape \(7,\)"),
        ("x_test", idx(np.zeros((0, 2, 3))), r"must hold images, got values of shape \(0, 2, 3\)"),
        ("x_test", idx(np.zeros((7, 3, 3))), r"must have one size, got \(2, 3\) and \(3, 3\)"),
    ],
)
def test_a_damaged_file_is_refused_by_name(folder, part, content, words):
    (folder / MNIST_FILES[part]).write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        load(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("fault", ["cut", "flipped", "not gzip"])
def test_a_damaged_gzip_file_is_refused_by_name(folder, fault):
    plain = folder / MNIST_FILES["x_train"]
    whole = gzip.compress(plain.read_bytes(), mtime=0)
    plain.unlink()
    content = {
        "cut": whole[:-20],
        "flipped": whole[:10] + b"\xff" + whole[11:],
        "not gzip": b"plain text",
    }[fault]
    (folder / f"{MNIST_FILES['x_train']}.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is not a whole gzip file"):
        load(folder)


def test_a_split_moves_to_a_device():
    split = Split(torch.ones(2, 1), torch.tensor([0, 1])).to("meta")
    assert split.x.is_meta
    assert split.y.is_meta
