"""The worker thread's promises: newest wins, nothing is lost, callbacks come in order."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
import torch

from lca_widgets.widgets.runner import Runner, RunState

PATIENCE = 10  # seconds until a wait counts as hung


class Log:
    """Records what a runner hands over, and lets a test wait for it."""

    def __init__(self, **options):
        self.records = []
        self.batches = []
        self.states = []
        self.error = None
        self.changed = threading.Condition()
        self.runner = Runner(self.on_records, self.on_state, **options)

    def on_records(self, batch):
        with self.changed:
            self.records += batch
            self.batches.append(len(batch))
            self.changed.notify_all()

    def on_state(self, state, error):
        with self.changed:
            self.states.append(state)
            self.error = error
            self.changed.notify_all()

    def await_records(self, n):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.records) >= n, PATIENCE)


class Tap:
    """A source of records that the test opens and closes: one record for each release."""

    def __init__(self, name):
        self.name = name
        self.releases = threading.Semaphore(0)
        self.closed = threading.Event()
        self.asked = threading.Semaphore(0)

    def __call__(self):
        try:
            for k in itertools.count():
                self.asked.release()
                if not self.releases.acquire(timeout=PATIENCE):
                    return
                yield (self.name, k)
        finally:
            self.closed.set()


def test_every_record_arrives_once_and_in_order():
    log = Log(updates_per_second=1000)
    log.runner.start(lambda: iter(range(500)))
    assert log.runner.wait(PATIENCE)
    assert log.records == list(range(500))
    assert log.states == [RunState.RUNNING, RunState.FINISHED]


def test_the_first_record_comes_at_once_and_the_rest_in_few_batches():
    def source():
        for k in range(200):
            time.sleep(0.001)
            yield k

    log = Log(updates_per_second=20)
    log.runner.start(source)
    assert log.runner.wait(PATIENCE)
    assert log.batches[0] == 1
    assert sum(log.batches) == 200
    assert len(log.batches) < 100  # 20 a second and one at the end; 200 if it were not limited


def test_a_new_request_replaces_the_running_one():
    log, old = Log(), Tap("old")
    log.runner.start(old)
    old.releases.release()
    log.await_records(1)
    log.runner.start(lambda: iter([("new", 0), ("new", 1)]))
    old.releases.release(3)  # the old source would have more
    assert log.runner.wait(PATIENCE)
    assert old.closed.wait(PATIENCE)
    assert log.records == [("old", 0), ("new", 0), ("new", 1)]


def test_of_many_requests_only_the_newest_is_run():
    log, blocker, asked = Log(), Tap("blocker"), []

    def make(k):
        def source():
            asked.append(k)
            yield k

        return source

    log.runner.start(blocker)
    assert blocker.asked.acquire(timeout=PATIENCE)  # the worker is busy with it
    for k in range(50):
        log.runner.start(make(k))
    blocker.releases.release()
    assert log.runner.wait(PATIENCE)
    assert asked == [49]
    assert log.records == [49]


def test_pause_holds_step_advances_by_one_and_resume_goes_on():
    log = Log(updates_per_second=1000)
    log.runner.start(lambda: iter(range(1_000_000)), paused=True)
    time.sleep(0.05)
    assert log.records == []
    for expected in (1, 2):
        log.runner.step()
        log.await_records(expected)
        time.sleep(0.05)
        assert len(log.records) == expected
    log.runner.resume()
    log.await_records(10)
    log.runner.pause()
    held = len(log.records)
    assert log.runner.state is RunState.PAUSED
    time.sleep(0.05)
    assert len(log.records) <= held + 1  # the record that was being computed
    log.runner.stop()


def test_stop_keeps_what_there_is_and_lets_nothing_through_afterwards():
    log = Log(updates_per_second=1e-3)  # nothing but the first record is handed over by the rate
    tap = Tap("run")
    log.runner.start(tap)
    tap.releases.release(3)
    log.await_records(1)
    for _ in range(4):  # once asked for a fourth record, the runner has three
        assert tap.asked.acquire(timeout=PATIENCE)
    log.runner.stop()
    assert log.records == [("run", 0), ("run", 1), ("run", 2)]
    tap.releases.release(3)
    assert tap.closed.wait(PATIENCE)
    assert len(log.records) == 3
    assert log.states[-1] is RunState.STOPPED


def test_stop_does_not_wait_for_the_step_in_progress():
    log = Log()
    in_step, free = threading.Event(), threading.Event()

    def source():
        in_step.set()
        free.wait(PATIENCE)
        yield "late"

    log.runner.start(source)
    assert in_step.wait(PATIENCE)
    log.runner.stop()
    assert log.runner.state is RunState.STOPPED  # while the source is still blocked
    free.set()


def test_an_error_in_the_source_is_reported_and_the_runner_lives_on():
    log = Log()

    def source():
        yield 0
        raise ValueError("depth must be positive")

    log.runner.start(source)
    assert log.runner.wait(PATIENCE)
    assert log.records == [0]
    assert log.states[-1] is RunState.FAILED
    assert str(log.error) == "depth must be positive"
    log.runner.start(lambda: iter([1]))
    assert log.runner.wait(PATIENCE)
    assert log.records == [0, 1]


def test_a_callback_that_raises_does_not_kill_the_runner():
    raised = threading.Event()

    def raise_once(batch):
        if not raised.is_set():
            raised.set()
            raise RuntimeError("a bug in drawing")
        log.records += batch

    log = Log()
    log.runner = Runner(raise_once, log.on_state)
    log.runner.start(lambda: iter([1]))
    assert log.runner.wait(PATIENCE)
    assert log.states[-1] is RunState.FAILED
    assert str(log.error) == "a bug in drawing"
    log.runner.start(lambda: iter([2]))
    assert log.runner.wait(PATIENCE)
    assert log.records == [2]


def test_a_run_may_be_started_from_the_callback_that_ends_another():
    log = Log()
    more = [[2, 3], [4]]

    def on_state(state, error):
        if state is RunState.FINISHED and more:
            batch = more.pop(0)
            log.runner.start(lambda: iter(batch))

    log.runner = Runner(log.on_records, on_state)
    log.runner.start(lambda: iter([1]))
    log.await_records(4)
    assert log.records == [1, 2, 3, 4]


def test_the_worker_computes_with_one_torch_thread():
    log, threads = Log(), []

    def source():
        threads.append(torch.get_num_threads())
        yield 0

    log.runner.start(source)
    assert log.runner.wait(PATIENCE)
    assert threads == [1]


def test_no_thread_stays_behind_when_there_is_nothing_to_do():
    log = Log()
    log.runner.start(lambda: iter([0]))
    assert log.runner.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while any(t.name == "lca-runner" for t in threading.enumerate()):
        if time.monotonic() > deadline:
            pytest.fail("the worker thread is still alive")
        time.sleep(0.01)
