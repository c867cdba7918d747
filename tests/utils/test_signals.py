"""The first signal requests a stop, the second terminates."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from segan.errors import StoppedError
from segan.utils.signals import graceful_shutdown

FIRST_SIGNAL, SECOND_SIGNAL = signal.SIGUSR1, signal.SIGUSR2


@pytest.fixture
def received_signals() -> Iterator[list[int]]:
    """The signals that the previous handlers receive."""
    numbers: list[int] = []
    before = {
        n: signal.signal(n, lambda n, _: numbers.append(n)) for n in (FIRST_SIGNAL, SECOND_SIGNAL)
    }
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_requests_a_stop_and_the_second_gets_the_previous_handler(
    received_signals: list[int],
) -> None:
    with graceful_shutdown(FIRST_SIGNAL, SECOND_SIGNAL) as stop_requested:
        assert (stop_requested(), stop_requested.signum, stop_requested.elapsed_s) == (
            False,
            None,
            0.0,
        )
        signal.raise_signal(SECOND_SIGNAL)
        assert (stop_requested(), stop_requested.signum, received_signals) == (
            True,
            SECOND_SIGNAL,
            [],
        )
        assert 0 <= stop_requested.elapsed_s < 60
        signal.raise_signal(FIRST_SIGNAL)
        assert (stop_requested.signum, received_signals) == (SECOND_SIGNAL, [FIRST_SIGNAL])


def test_the_previous_handlers_are_restored(received_signals: list[int]) -> None:
    with graceful_shutdown(FIRST_SIGNAL):
        signal.raise_signal(SECOND_SIGNAL)
    signal.raise_signal(FIRST_SIGNAL)
    assert received_signals == [SECOND_SIGNAL, FIRST_SIGNAL]


def test_the_exit_code_is_the_signals(received_signals: list[int]) -> None:
    def stop() -> None:
        with graceful_shutdown(FIRST_SIGNAL):
            signal.raise_signal(FIRST_SIGNAL)
            raise StoppedError("stopped")

    with pytest.raises(StoppedError) as caught:
        stop()
    assert caught.value.exit_code == 128 + FIRST_SIGNAL
    assert StoppedError("by no signal").exit_code == 128 + signal.SIGTERM


def test_an_ignored_signal_stays_ignored(received_signals: list[int]) -> None:
    signal.signal(FIRST_SIGNAL, signal.SIG_IGN)
    with graceful_shutdown(FIRST_SIGNAL) as stop_requested:
        signal.raise_signal(FIRST_SIGNAL)
        assert not stop_requested()


def test_no_signal_is_handled_outside_of_the_main_thread(received_signals: list[int]) -> None:
    def run() -> None:
        with graceful_shutdown(FIRST_SIGNAL) as stop_requested:
            signal.raise_signal(FIRST_SIGNAL)
            requests.append(stop_requested())

    requests: list[bool] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert (requests, received_signals) == ([False], [FIRST_SIGNAL])


PROGRAM = """
import signal
from segan.utils.signals import graceful_shutdown
with graceful_shutdown(signal.SIGTERM, signal.SIGINT) as stop_requested:
    signal.raise_signal(signal.SIGINT)
    print(stop_requested(), flush=True)
    signal.raise_signal({})
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_terminates_the_process(second: signal.Signals) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(int(second))],
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("True\n", -second)
