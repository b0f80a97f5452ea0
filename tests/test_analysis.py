"""The files of results: damage is always seen, and endings mean what they mean to pandas.

Results are made of made-up records here; that measured ones come back whole is seen where they are
measured.
"""

import json
import zipfile
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch

from lca_widgets.analysis import Analysis, History, LayerAnalysis, load, replaced
from lca_widgets.curvature import LayerSpectra, Spectrum
from lca_widgets.records import LayerReport, Report

VARIANTS = 300
VALUES = {"int": 3, "int | None": 7, "float": 0.5, "str": "fc", "bool": False}


def report(**changes):
    return LayerReport(**{f.name: VALUES[f.type] for f in fields(LayerReport)} | changes)


def small_history():
    return History([Report(0, (report(groups=1),)), Report(20, (report(groups=1),))], {"1": "why"})


def small_analysis():
    """A dense layer, and one of two groups."""
    spectra = {f: Spectrum(torch.tensor([2.0, 1.0]), 7) for f in ("input", "grad", "input_centred")}
    groups = torch.tensor([[2.0], [1.0]]), torch.tensor([[2.0], [1.0]])
    layers = [
        LayerAnalysis(report(groups=1), LayerSpectra("fc", **spectra), spectra["input"]),
        LayerAnalysis(report(groups=2), LayerSpectra("fc", groups=groups, **spectra)),
    ]
    return Analysis(layers, spectra["grad"], {"1": "why"}, 0.25)


def content(result):
    """All that a file keeps, to be compared."""
    parts = [result.table().to_csv(), result.skipped]
    if isinstance(result, Analysis):
        parts += [result.loss, result.network.eigenvalues.tolist()]
        for layer in result.layers:
            spectra = [layer.input, layer.grad, layer.input_centred, layer.kronecker, layer.block]
            parts += [None if s is None else (s.n, s.eigenvalues.tolist()) for s in spectra]
    return parts


@pytest.fixture(params=[small_history, small_analysis], ids=["history", "analysis"])
def saved(request, tmp_path):
    result = request.param()
    result.save(tmp_path / "saved")
    return result, tmp_path / "saved"


def test_results_come_back(saved):
    result, path = saved
    assert content(load(path)) == content(result)


def test_an_analysis_without_layers_comes_back(tmp_path):
    Analysis([], None, {"1": "why"}, 0.25).save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert (again.layers, again.network, again.skipped) == ([], None, {"1": "why"})


# Damage


@pytest.mark.parametrize("kind", ["flipped", "overwritten", "cut", "removed"])
def test_a_damaged_file_is_refused_or_what_is_damaged_means_nothing(saved, kind):
    """A date in the archive means nothing, for one."""
    result, path = saved
    expected, whole = content(result), path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(VARIANTS // 4):
        damaged = bytearray(whole)
        at = int(generator.integers(len(whole)))
        if kind == "flipped":
            damaged[at] ^= 1 << int(generator.integers(8))
        elif kind == "overwritten":
            damaged[at : at + 8] = generator.bytes(min(8, len(whole) - at))
        elif kind == "cut":
            del damaged[at:]
        else:
            del damaged[at : at + 1 + int(generator.integers(40))]
        path.write_bytes(damaged)
        try:
            again = load(path)
        except ValueError as error:
            assert str(error).startswith(f"{path} is no saved analysis, or is damaged: ")  # noqa: PT017 - it need not be raised
            refused += 1
        else:
            assert content(again) == expected
    assert refused > VARIANTS // 8


def rewritten(path, header=None, **arrays):
    """Change or take away (None) parts of a saved file; the archive itself is sound."""
    with np.load(path) as file:
        parts = {name: file[name] for name in file.files}
    old = json.loads(str(parts["header"]))
    changed = parts | {name.replace("__", "/"): array for name, array in arrays.items()}
    changed["header"] = np.array(json.dumps(header(old) if callable(header) else old))
    with path.open("wb") as file:
        np.savez(file, **{name: part for name, part in changed.items() if part is not None})


@pytest.mark.parametrize(
    "changes",
    [
        {"table__rank_x": None},
        {"table__step": None},
        {"table__grad_rows": np.array([1, 2, 3])},
        {"table__n": np.array([[1, 2]])},
        {"table__layer": np.array(1)},
        {"table__lambda_max": np.array(["a", "b"])},
        {"table__name": np.array([1.0, 2.0])},
        {"header": lambda old: [old]},
        {"header": lambda old: old | {"format": "another"}},
        {"header": lambda old: old | {"version": "new"}},
        {"header": lambda old: old | {"version": None}},
        {"header": lambda old: old | {"kind": "neither"}},
        {"header": lambda old: old | {"skipped": 3}},
        {"header": lambda _: {}},
    ],
)
def test_content_that_does_not_fit_is_refused(saved, changes):
    _, path = saved
    rewritten(path)
    load(path)  # it is the change that matters
    rewritten(path, **changes)
    with pytest.raises(ValueError, match=f"^{path} is no saved analysis, or is damaged: "):
        load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"spectrum__input__0": None},
        {"spectrum__grad__1": np.array(["a"])},
        {"spectrum__grad__1": np.ones((2, 2))},
        {"groups__x__1": None},
        {"groups__g__1": np.array(["a"])},
        {"table__step": np.array([0, 20])},
        {"header": lambda old: {key: old[key] for key in old if key != "loss"}},
        {"header": lambda old: old | {"loss": "low"}},
        {"header": lambda old: old | {"sizes": [1, 2]}},
        {"header": lambda old: old | {"sizes": {"input/0": 3}}},
        {"header": lambda old: old | {"sizes": {"input/0": ["a", "b"]}}},
        {"header": lambda old: old | {"sizes": {}}},
    ],
)
def test_an_analysis_whose_spectra_do_not_fit_is_refused(tmp_path, changes):
    path = tmp_path / "saved"
    small_analysis().save(path)
    rewritten(path, **changes)
    with pytest.raises(ValueError, match=f"^{path} is no saved analysis, or is damaged: "):
        load(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"{}"], ids=str)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match="other is no saved analysis, or is damaged: "):
        load(tmp_path / "other")


def test_arrays_and_archives_of_others_are_refused(tmp_path):
    np.save(tmp_path / "other.npy", np.ones(3))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("header", "text")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match="is no saved analysis, or is damaged: "):
            load(path)


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent")
    with pytest.raises(OSError, match=r"directory|denied"):
        load(tmp_path)


# Tables


@pytest.mark.parametrize(
    ("name", "magic"),
    [("t.csv", b"step,"), ("t.csv.gz", b"\x1f\x8b"), ("t.csv.bz2", b"BZh"), ("t.csv.zip", b"PK")],
)
def test_a_table_is_compressed_as_its_name_ends(tmp_path, name, magic):
    small_history().to_csv(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / name), small_history().table())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_table_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    small_history().to_csv(tmp_path / "t.csv.gz")
    before = (tmp_path / "t.csv.gz").read_bytes()

    def fails(_, path, **__):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fails)
    with pytest.raises(OSError, match="disk full"):
        small_history().to_csv(tmp_path / "t.csv.gz")
    assert (tmp_path / "t.csv.gz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv.gz"]


def test_what_is_written_in_place_of_a_file_lies_beside_it_until_then(tmp_path):
    with replaced(tmp_path / "file.html") as draft:
        draft.write_text("new")
        assert (draft.parent, draft.suffix) == (tmp_path, ".html")
        assert not (tmp_path / "file.html").exists()
    assert (tmp_path / "file.html").read_text() == "new"
    with (
        pytest.raises(FileNotFoundError, match="must be in an existing folder"),
        replaced(tmp_path / "absent" / "file"),
    ):
        pytest.fail("it is said at once")
