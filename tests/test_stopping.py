"""Stopped from outside: every signal is a Ctrl-C, at a program's edge and nowhere else, what others handle stays."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from diffusion_var.locks import locked
from diffusion_var.stopping import SIGNALS, Stopped, StopSignals, exit_code, unwinding, word

START = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


pytestmark = pytest.mark.usefixtures("usual_signals")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_every_signal_is_a_keyboard_interrupt_with_its_exit_code(number: signal.Signals, code: int) -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    with StopSignals(), pytest.raises(KeyboardInterrupt) as stop, unwinding():
        os.kill(os.getpid(), number)
    assert isinstance(stop.value, Stopped)
    assert exit_code(stop.value) == code
    assert ("interrupted" if number == signal.SIGINT else number.name) in word(stop.value)
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_importing_the_package_changes_no_handler() -> None:
    code = (
        "import signal; numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)\n"
        "before = [signal.getsignal(n) for n in numbers]\n"
        "import diffusion_var, diffusion_var.app.cli, diffusion_var.stopping, diffusion_var.resume\n"
        "assert [signal.getsignal(n) for n in numbers] == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_is_ignored_or_handled_by_others_stays_so() -> None:
    heard: list[int] = []

    def listens(number: int, frame: Any) -> None:
        heard.append(number)

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    signal.signal(signal.SIGTERM, listens)
    with StopSignals(), unwinding():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    assert heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_another_thread_takes_nothing_over() -> None:
    found: list[Any] = []

    def elsewhere() -> None:
        with StopSignals():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_scheduler_that_repeats_itself_does_not_stop_the_saving_but_a_person_does() -> None:
    saved = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            for number in (signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), number)
                time.sleep(0.01)
                saved.append(number)
            os.kill(os.getpid(), signal.SIGINT)
            saved.append(signal.SIGINT)

    with StopSignals(), pytest.raises(Stopped) as stop, unwinding():
        work()
    assert saved == [signal.SIGTERM, signal.SIGHUP]
    assert stop.value.number == signal.SIGINT


def test_an_error_that_a_library_makes_of_a_stop_is_the_stop() -> None:
    def library() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    with StopSignals(), pytest.raises(Stopped), unwinding():
        library()
    with StopSignals(), pytest.raises(ImportError), unwinding():  # one of its own stays
        raise ImportError("no such module")


@pytest.mark.parametrize(
    ("entry", "module", "number"),
    [
        ("diffusion_var", "typer", signal.SIGINT),
        ("diffusion_var.app.cli", "typer", signal.SIGTERM),
        ("diffusion_var", "torch", signal.SIGINT),
    ],
)
def test_in_the_first_second_there_is_no_traceback(
    entry: str, module: str, number: signal.Signals, tmp_path: Path
) -> None:
    """In the midst of imports: of the command line's own, and of a command's."""
    code = START + (
        "import builtins, os, runpy, sys\n"
        "genuine = builtins.__import__\n"
        "def importing(name, *rest, **named):\n"
        f"    if name == '{module}' and '{module}' not in sys.modules:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "    return genuine(name, *rest, **named)\n"
        "builtins.__import__ = importing\n"
        f"sys.argv = ['x', 'sample', '--model', 'digits', '--steps', '2', '-o', {str(tmp_path / 'o')!r}]\n"
        f"runpy.run_module('{entry}', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.split() == word(Stopped(number)).split()
    assert list(tmp_path.iterdir()) == []


def test_who_leaves_at_once_takes_its_locks_along(tmp_path: Path) -> None:
    code = START + (
        "import os, signal\n"
        "from diffusion_var.locks import locked\n"
        "from diffusion_var.stopping import StopSignals\n"
        f"with StopSignals(), locked({str(tmp_path / 'new' / 'folder')!r}, folder=True):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode == 143
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "new", folder=True):
        pass
