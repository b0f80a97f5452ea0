"""A worker thread that runs the newest request and hands its records over at a bounded rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Generic, TypeVar

import torch

from lca_widgets.curvature import one_thread

__all__ = ["RunState", "Runner"]

Record = TypeVar("Record")


class RunState(StrEnum):
    """What the newest request is doing."""

    IDLE = "idle"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "error"

    @property
    def active(self) -> bool:
        """Whether records may still come."""
        return self in (RunState.RUNNING, RunState.PAUSED)


class _Run(Generic[Record]):
    """One request: its source of records, and those not handed over yet."""

    def __init__(self, make: Callable[[], Iterator[Record]]) -> None:
        self.make = make
        self.pending: list[Record] = []
        self.last_delivery = -float("inf")


class Runner(Generic[Record]):
    """Iterates over one source of records at a time, in one daemon thread.

    A new request replaces the one in progress ("newest wins"): nothing of the old one is handed
    over any more. Records are handed over in batches, the first at once and then at most
    ``updates_per_second`` batches a second; none is dropped. Pause, stop and a new request take
    effect at once for the caller, and in the worker after the record it is computing.

    Both callbacks run under the runner's lock, in the worker or in the caller's thread, so their
    order is the order of events. They must be quick and must not wait for the worker.

    Attributes:
        lock: Held while a callback runs; hold it to keep several calls together.

    Args:
        on_records: Receives each batch of records.
        on_state: Receives each change of state, with the error where a request raised one.
        updates_per_second: Most batches handed over in a second.

    Example:
        >>> seen = []
        >>> runner = Runner(seen.extend, lambda state, error: None)
        >>> runner.start(lambda: iter(range(5)))
        >>> runner.wait(timeout=5)
        True
        >>> seen
        [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        on_records: Callable[[list[Record]], None],
        on_state: Callable[[RunState, Exception | None], None],
        *,
        updates_per_second: float = 20,
    ) -> None:
        self._on_records = on_records
        self._on_state = on_state
        self._interval = 1 / updates_per_second
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._state = RunState.IDLE
        self._run: _Run[Record] | None = None  # the newest request
        self._waiting: _Run[Record] | None = None  # the same, until the worker takes it up
        self._steps_allowed = 0  # records that a paused run may still produce
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> RunState:
        """What the newest request is doing."""
        return self._state

    def start(self, make: Callable[[], Iterator[Record]], *, paused: bool = False) -> None:
        """Replace whatever is running by the records of ``make()``, called in the worker.

        Args:
            make: Returns a fresh iterator; it is closed when the run ends or is replaced.
            paused: Wait for `step` or `resume` before the first record.
        """
        with self._changed:
            self._run = self._waiting = _Run(make)
            self._steps_allowed = 0
            self._set_state(RunState.PAUSED if paused else RunState.RUNNING)
            if self._thread is None or not self._thread.is_alive():
                # A thread that first asks after another has set its own number is given that one:
                # ask here, or the caller's later work would be held to the worker's one thread.
                torch.get_num_threads()
                self._thread = threading.Thread(target=self._work, name="lca-runner", daemon=True)
                self._thread.start()

    def pause(self) -> None:
        """Hold the run after the record in progress; hand over what there is."""
        with self._changed:
            if self._state is RunState.RUNNING:
                self._deliver()
                self._set_state(RunState.PAUSED)

    def resume(self) -> None:
        """Let a paused run go on."""
        with self._changed:
            if self._state is RunState.PAUSED:
                self._steps_allowed = 0
                self._set_state(RunState.RUNNING)

    def step(self) -> None:
        """Let a paused run produce one more record."""
        with self._changed:
            if self._state is RunState.PAUSED:
                self._steps_allowed += 1
                self._changed.notify_all()

    def stop(self) -> None:
        """End the run for good and hand over what there is."""
        with self._changed:
            if self._state.active:
                self._deliver()
                self._run = self._waiting = None
                self._set_state(RunState.STOPPED)

    def wait(self, timeout: float) -> bool:
        """Wait until no run is active; return whether that came true within ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._state.active, timeout)

    def _work(self) -> None:
        with one_thread():  # the setting is per thread: the main thread's does not reach here
            while (run := self._take_up()) is not None:
                self._consume(run)

    def _take_up(self) -> _Run[Record] | None:
        with self._changed:
            run, self._waiting = self._waiting, None
            if run is None:
                self._thread = None  # the thread ends; the next request starts another
            return run

    def _consume(self, run: _Run[Record]) -> None:
        error: Exception | None = None
        try:
            records = run.make()
            while self._may_go_on(run):
                record = next(records, None)
                if record is None:
                    break
                self._accept(run, record)
            if close := getattr(records, "close", None):
                close()
        except Exception as raised:  # noqa: BLE001 - whatever it is, it belongs to the run's owner
            error = raised
        with self._changed:
            if self._run is run:
                try:
                    self._deliver()
                except Exception as raised:  # noqa: BLE001 - as above
                    error = raised
                self._run = None
                self._set_state(RunState.FAILED if error else RunState.FINISHED, error)

    def _may_go_on(self, run: _Run[Record]) -> bool:
        """Wait while paused; say whether ``run`` is still the newest request."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._run is not run
                    or self._state is RunState.RUNNING
                    or self._steps_allowed > 0
                )
            )
            return self._run is run

    def _accept(self, run: _Run[Record], record: Record) -> None:
        with self._changed:
            if self._run is not run:
                return
            run.pending.append(record)
            stepping = self._state is RunState.PAUSED
            if stepping:
                self._steps_allowed = max(0, self._steps_allowed - 1)
            if stepping or time.monotonic() - run.last_delivery >= self._interval:
                self._deliver()

    def _deliver(self) -> None:
        run = self._run
        if run is not None and run.pending:
            batch, run.pending = run.pending, []
            run.last_delivery = time.monotonic()
            self._on_records(batch)

    def _set_state(self, state: RunState, error: Exception | None = None) -> None:
        self._state = state
        self._on_state(state, error)
        self._changed.notify_all()
