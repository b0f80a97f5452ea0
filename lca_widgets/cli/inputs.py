"""What is analysed, from words of a command line: the model, the loss, the data."""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lca_widgets.curvature.passes import samples_in

__all__ = [
    "BATCH_SIZE",
    "LOSSES",
    "Batches",
    "CommandError",
    "data",
    "hint",
    "import_path",
    "loss",
    "model",
    "refused",
]

BATCH_SIZE = 256

LOSSES: dict[str, Callable[[], nn.Module]] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "mse": nn.MSELoss,
    "bce_with_logits": nn.BCEWithLogitsLoss,
}
ONE_HOT_LOSSES = ("mse", "bce_with_logits")  # they compare with as many numbers as come out


class CommandError(Exception):
    """What the user can mend; its text is the one line that is shown."""


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Turn whatever goes wrong inside, the user's own code included, into one line."""
    try:
        yield
    except CommandError:
        raise
    except (Exception, SystemExit) as error:
        raise CommandError(f"{what}: {type(error).__name__}: {error}") from error


def model(options: argparse.Namespace) -> nn.Module:
    """Make the model that was named, with its checkpoint and in its mode."""
    found = _object("MODULE:NAME of the model", options.model)
    if not isinstance(found, nn.Module) and callable(found):
        torch.manual_seed(options.seed)  # again: what the import drew makes no difference
        with refused(f"{options.model} failed"):
            found = found()
    if not isinstance(found, nn.Module):
        raise CommandError(
            f"{options.model} must be an nn.Module, or a function or class that returns one when "
            f"called without arguments; got {type(found).__name__}"
        )
    if options.checkpoint is not None:
        _load_checkpoint(found, options.checkpoint)
    if options.train or options.eval:
        found.train(options.train)
    return found


def _load_checkpoint(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise CommandError(f"--checkpoint: there is no file {str(path)!r}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CommandError(
            f"--checkpoint {str(path)!r} cannot be read as tensors alone "
            f"({type(error).__name__}); torch.save(model.state_dict(), path) writes such a file"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):  # of a training's whole checkpoint
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise CommandError(
            f"--checkpoint {str(path)!r} must hold a state_dict, got {type(state).__name__}"
        )
    state = dict(state)
    if not any(name.startswith("module.") for name in model.state_dict()):
        # Saved from (Distributed)DataParallel.
        nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")
    with refused(f"--checkpoint {str(path)!r} does not fit the model"):
        model.load_state_dict(state)


def loss(text: str) -> Callable[[Any, Any], Tensor]:
    """Return the loss of that name, or what a module has under it."""
    if text in LOSSES:
        return LOSSES[text]()
    if ":" not in text:
        raise CommandError(
            f"--loss must be {', '.join(LOSSES)} or MODULE:NAME of a function, got {text!r}"
        )
    found = _object("--loss", text)
    if isinstance(found, type):
        with refused(f"--loss {text} failed"):
            found = found()
    if not callable(found):
        raise CommandError(
            f"--loss {text} must be a function of output and target, got {type(found).__name__}"
        )
    return found


def data(options: argparse.Namespace) -> Batches:
    """Return the batches of what was named."""
    source = options.data
    if _is_built_in(source):
        found: Any = _dataset(options)
    else:
        found = _object("--data", source)
        # A batch and a loader can be iterated, which a function and a class cannot.
        if callable(found) and not isinstance(found, Iterable | Dataset):
            with refused(f"--data {source} failed"):
                found = found()
    if isinstance(found, Dataset):
        return _from_dataset(found, options)
    if _is_pair_of_tensors(found):
        return _from_tensors(found, options)
    if isinstance(found, tuple):
        return Batches([found], options, total=1)
    if not isinstance(found, Iterable):
        raise CommandError(
            f"--data {source} must be one batch (x, y), an iterable of batches or a torch Dataset, "
            f"got {type(found).__name__}"
        )
    if options.batch_size is not None:
        raise CommandError(f"--batch-size: {source} comes in batches of its own; leave it out")
    return Batches(found, options, total=_length(found))


def hint(options: argparse.Namespace, model: nn.Module) -> str:
    """Say what is the likeliest reason for a model to fail, if there is one."""
    convolutional = any(isinstance(module, _ConvNd) for module in model.modules())
    if convolutional and options.shape is None and _is_built_in(options.data):
        return " (the samples are vectors: --shape 1,8,8 makes images of the digits)"
    return ""


def _is_built_in(source: str) -> bool:
    return source == "digits" or ":" not in source or Path(source).is_dir()


def _dataset(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    from lca_widgets.data import load

    try:
        dataset = load(
            Path(options.data) if options.data != "digits" else "digits", seed=options.seed
        )
    except (OSError, ValueError) as error:
        raise CommandError(f"--data: {error}; or MODULE:NAME of data of your own") from error
    x, y = dataset.train.x, dataset.train.y
    if options.loss in ONE_HOT_LOSSES:
        return x, nn.functional.one_hot(y, dataset.classes).to(x.dtype)
    return x, y


def _from_tensors(pair: Sequence[Tensor], options: argparse.Namespace) -> Batches:
    x, y = pair
    if not x.dim() or not y.dim() or len(x) != len(y):
        raise CommandError(
            f"--data {options.data}: x and y must have one entry a sample, got shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    _require_samples(len(x), options)
    n = options.samples or len(x)
    parts = _batch_count(n, options)
    batches = list(zip(x[:n].tensor_split(parts), y[:n].tensor_split(parts), strict=True))
    return Batches(batches, options, total=parts)


def _from_dataset(dataset: Dataset[Any], options: argparse.Namespace) -> Batches:
    if isinstance(dataset, IterableDataset):
        size = options.batch_size or BATCH_SIZE
        return Batches(DataLoader(dataset, batch_size=size), options, total=None)
    length = len(dataset)  # type: ignore[arg-type]  # a map-style data set has a length
    _require_samples(length, options)
    n = options.samples or length
    indices = torch.arange(n).tensor_split(_batch_count(n, options))
    loader = DataLoader(dataset, batch_sampler=[part.tolist() for part in indices])
    return Batches(loader, options, total=len(indices))


def _require_samples(n: int, options: argparse.Namespace) -> None:
    if n == 0:
        raise CommandError(f"--data {options.data} has no samples")
    if options.samples is not None and options.samples > n:
        raise CommandError(f"--samples must be at most {n}, the size of the data")


def _batch_count(n: int, options: argparse.Namespace) -> int:
    if options.exact and options.batch_size is None:
        return 1
    return -(-n // (options.batch_size or BATCH_SIZE))


def _is_pair_of_tensors(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(part, Tensor) for part in value)
    )


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]  # where it has one
    except TypeError:
        return None


@dataclass(frozen=True)
class Batches:
    """Batches behind a progress bar, cut after ``--samples`` and reshaped to ``--shape``."""

    source: Iterable[Any]
    options: argparse.Namespace
    total: int | None

    def __iter__(self) -> Iterator[Any]:
        from tqdm import tqdm

        # None: a bar only where standard error is a terminal.
        disable = True if self.options.quiet else None
        left = self.options.samples
        with tqdm(total=self.total, unit="batch", leave=False, disable=disable) as bar:
            for batch in self.source:
                if not isinstance(batch, tuple | list) or len(batch) != 2:
                    yield batch  # for the analysis to refuse
                    continue
                inputs, target = batch
                if left is not None:
                    n = samples_in(inputs, target)
                    inputs, target = _first(inputs, left, n), _first(target, left, n)
                    left -= min(n, left)
                yield self._reshaped(inputs), target
                bar.update()
                if left == 0:
                    return

    def _reshaped(self, inputs: Any) -> Any:
        shape = self.options.shape
        if shape is None:
            return inputs
        if not isinstance(inputs, Tensor):
            raise CommandError(
                f"--shape needs inputs that are tensors, got {type(inputs).__name__}"
            )
        if inputs[0].numel() != torch.Size(shape).numel():
            raise CommandError(
                f"--shape {','.join(map(str, shape))} has {torch.Size(shape).numel()} numbers a "
                f"sample, but the data has {inputs[0].numel()}, of shape {tuple(inputs.shape[1:])}"
            )
        return inputs.reshape(-1, *shape)


def _first(value: Any, count: int, n: int) -> Any:
    """Cut what has ``n`` entries, one a sample, down to ``count`` of them."""
    if isinstance(value, Tensor):
        return value[:count] if value.dim() and len(value) == n else value
    if isinstance(value, Mapping):
        return {key: _first(part, count, n) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_first(part, count, n) for part in value)
    return value


# Names in modules


def _object(option: str, text: str) -> Any:
    """Find what ``MODULE:NAME`` or ``FILE.py:NAME`` names."""
    source, colon, name = text.rpartition(":")
    if not (colon and source and name):
        raise CommandError(f"{option} must be MODULE:NAME or FILE.py:NAME, got {text!r}")
    module = _file_module(option, source) if source.endswith(".py") else _module(option, source)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [word for word in dir(found) if not word.startswith("_")]
            close = difflib.get_close_matches(part, public, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise CommandError(f"{option}: {source} has no {name!r}{hint}")
        found = getattr(found, part)
    return found


def _module(option: str, name: str) -> ModuleType:
    with refused(f"{option}: importing {name} failed"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, but one that it imports is not
            raise CommandError(
                f"{option}: there is no module {name!r} in the current folder or among the "
                "installed packages; a file is named as folder/file.py:NAME"
            ) from error


def _file_module(option: str, source: str) -> ModuleType:
    path = Path(source).resolve()
    if not path.is_file():
        raise CommandError(f"{option}: there is no file {source!r}")
    name = f"lca_widgets_file_{path.stem}_{abs(hash(str(path)))}"  # no other module's name
    if name in sys.modules:  # the model and the data may come from one file
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    if str(path.parent) not in sys.path:
        sys.path.insert(
            0, str(path.parent)
        )  # as Python does for a script: it imports what is beside
    with refused(f"{option}: importing {source} failed"):
        spec.loader.exec_module(module)
    return module


@contextmanager
def import_path() -> Iterator[None]:
    """Let modules of the current folder be imported, also where `python -m` did not start this."""
    before = list(sys.path)
    if str(Path.cwd()) not in before:
        sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before
