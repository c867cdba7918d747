"""The first signal asks, the second ends."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from segan.errors import StoppedError
from segan.interrupts import stoppable

ONE, OTHER = signal.SIGUSR1, signal.SIGUSR2


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What the handlers from before have heard."""
    numbers: list[int] = []
    before = {n: signal.signal(n, lambda n, _: numbers.append(n)) for n in (ONE, OTHER)}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_is_a_wish_and_the_second_what_it_always_was(heard: list[int]) -> None:
    with stoppable(ONE, OTHER) as wish:
        assert (wish(), wish.signal, wish.age) == (False, None, 0.0)
        signal.raise_signal(OTHER)
        assert (wish(), wish.signal, heard) == (True, OTHER, [])
        assert 0 <= wish.age < 60
        signal.raise_signal(ONE)
        assert (wish.signal, heard) == (OTHER, [ONE])


def test_without_a_signal_all_is_as_before(heard: list[int]) -> None:
    with stoppable(ONE):
        signal.raise_signal(OTHER)
    signal.raise_signal(ONE)
    assert heard == [OTHER, ONE]


def test_the_exit_code_is_the_signals(heard: list[int]) -> None:
    def stop() -> None:
        with stoppable(ONE):
            signal.raise_signal(ONE)
            raise StoppedError("stopped")

    with pytest.raises(StoppedError) as caught:
        stop()
    assert caught.value.exit_code == 128 + ONE
    assert StoppedError("by no signal").exit_code == 128 + signal.SIGTERM


def test_an_ignored_signal_stays_ignored(heard: list[int]) -> None:
    signal.signal(ONE, signal.SIG_IGN)
    with stoppable(ONE) as wish:
        signal.raise_signal(ONE)
        assert not wish()


def test_outside_of_the_main_thread_nothing_is_taken(heard: list[int]) -> None:
    def run() -> None:
        with stoppable(ONE) as wish:
            signal.raise_signal(ONE)
            wishes.append(wish())

    wishes: list[bool] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert (wishes, heard) == ([False], [ONE])


PROGRAM = """
import signal
from segan.interrupts import stoppable
with stoppable(signal.SIGTERM, signal.SIGINT) as wish:
    signal.raise_signal(signal.SIGINT)
    print(wish(), flush=True)
    signal.raise_signal({})
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_one_ends_a_process_at_once(second: signal.Signals) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(int(second))],
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("True\n", -second)
