"""The program in a real (pseudo) terminal, with a scripted model behind it."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVER = textwrap.dedent(
    """
    from aperto.cli import local
    from aperto.cli.main import main
    from tests.cli.scripted import ANSWER, ScriptedChat
    from tests.cli.test_chat_command import ScriptedModel

    slow = ANSWER.replace("<|return|>", " and so on" * 500 + "<|return|>")
    chat = ScriptedChat(*[SCRIPT], delay_s=0.01)
    local.load_local = lambda *given: ScriptedModel(chat)
    main()
    """
)


class Terminal:
    """A process with a terminal of its own; `expect` reads until a text has appeared."""

    def __init__(self, script, *arguments):
        self.master, slave = pty.openpty()
        code = DRIVER.replace("SCRIPT", script)
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: _take_terminal(slave),
        )
        os.close(slave)
        self.seen = ""

    def expect(self, pattern, timeout_s=90):
        end = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.seen!r}"
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the terminal is gone with its last process
                data = b""
            assert data, f"ended without {pattern!r} in {self.seen!r}"
            self._answer(data)
            self.seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data.decode(errors="replace"))
        self.seen = self.seen[found.end() :]

    def _answer(self, data):
        # A terminal that is asked where its cursor is says so; the input line waits for it.
        if b"\x1b[6n" in data:
            os.write(self.master, b"\x1b[1;1R")

    def send(self, text):
        os.write(self.master, text.encode())

    def wait(self):
        end = time.monotonic() + 90
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    self._answer(os.read(self.master, 65536))
                except OSError:
                    break
        return self.process.wait(timeout=90)

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self.master)


def _take_terminal(slave):
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite in the background is started without it
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(own_folders):
    opened = []

    def start(script, *arguments):
        opened.append(Terminal(script, *arguments))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_chat_from_question_to_goodbye(terminal):
    chat = terminal("ANSWER, ANSWER", "chat")
    chat.expect(r"nano, effort medium")
    chat.expect(r">")
    chat.send("What is 17 * 23?\r")
    chat.expect(r"17 \* 20 \+ 51\.")
    chat.expect(r"It is 391\.")
    chat.expect(r"tokens/s")
    chat.send("/effort high\r")
    chat.expect(r"effort high")
    chat.send("/nonsense\r")
    chat.expect(r"error: unknown command /nonsense")
    chat.expect(r">")  # between two input lines, Ctrl-D would be the terminal's own and lost
    chat.send("\x04")
    assert chat.wait() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal):
    chat = terminal("slow, ANSWER", "chat")
    chat.expect(r">")
    chat.send("Go on\r")
    chat.expect(r"and so on")
    chat.send("\x03")
    chat.expect(r"stopped · seed")
    chat.send("Again\r")
    chat.expect(r"It is 391\.")
    chat.expect(r"tokens/s")
    chat.send("\x03")
    chat.send("/exit\r")
    assert chat.wait() == 0


def test_several_lines_are_one_question(terminal):
    chat = terminal("ANSWER", "chat")
    chat.expect(r">")
    chat.send("one\\\r")
    chat.expect(r"\.")
    chat.send("two\r")
    chat.expect(r"It is 391\.")
    chat.send("/save talk.json\r")
    chat.expect(r"saved to talk\.json")
    (ROOT / "talk.json").unlink()


def test_a_prompt_in_a_terminal_is_answered_once(terminal):
    chat = terminal("ANSWER", "chat", "-p", "Hi")
    chat.expect(r"It is 391\.")
    chat.expect(r"tokens/s")
    assert chat.wait() == 0


def test_ctrl_c_in_a_one_shot_answer_exits_with_130(terminal):
    chat = terminal("slow", "chat", "-p", "Hi")
    chat.expect(r"and so on")
    chat.send("\x03")
    chat.expect(r"stopped")
    assert chat.wait() == 130
