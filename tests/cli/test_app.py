import errno
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from aperto import errors
from aperto.cli.app import AppGroup, exit_code, one_line
from aperto.cli.table import columns

MAIN = [sys.executable, "-c", "from aperto.cli.main import main; main()"]


def app_that_raises(error):
    app = typer.Typer(cls=AppGroup, rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.command()
    def fail():
        raise error

    @app.command()
    def other():
        pass

    return app


def test_version(aperto):
    result = aperto("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("aperto ")


def test_help_lists_every_command(aperto):
    result = aperto("--help")
    for name in ["chat", "models", "pull", "info", "check", "convert", "bench", "cache", "config"]:
        assert f"  {name} " in result.stdout


def test_no_arguments_print_the_help(aperto):
    assert "Usage: " in aperto().output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ModelNotFoundError("x"), 2),
        (errors.FormatError("x"), 3),
        (errors.MemoryLimitError("x"), 4),
        (MemoryError(), 4),
        (errors.DownloadError("x"), 5),
        (errors.ContextLengthError("x"), 1),
        (FileNotFoundError(errno.ENOENT, "no such file", "x"), 1),
    ],
)
def test_errors_are_one_line_and_an_exit_code(error, code):
    result = CliRunner().invoke(app_that_raises(error), ["fail"])
    assert result.exit_code == code == exit_code(error)
    assert result.stdout == ""
    assert result.stderr.startswith("aperto: error: ")
    assert result.stderr.count("\n") == 1


def test_bugs_are_not_hidden():
    result = CliRunner().invoke(app_that_raises(RuntimeError("a bug")), ["fail"])
    assert isinstance(result.exception, RuntimeError)


def test_one_line_removes_newlines_and_escapes():
    assert one_line(errors.UsageError("a\n  b\x1b[31mc")) == "a b�[31mc"
    assert one_line(errors.UsageError("")) == "UsageError"


def test_a_traceback_only_with_debug(aperto, tmp_path):
    quiet = aperto("info", str(tmp_path / "none"))
    assert "Traceback" not in quiet.stderr
    assert quiet.exit_code == 2
    loud = aperto("info", str(tmp_path / "none"), "--log-level", "debug")
    assert "Traceback" in loud.stderr
    before = aperto("--log-level", "debug", "info", str(tmp_path / "none"))
    assert "Traceback" in before.stderr


def test_a_broken_config_file_is_an_error_but_help_and_path_still_work(
    aperto, tmp_path, monkeypatch
):
    file = tmp_path / "config.toml"
    file.write_text('efort = "low"')
    monkeypatch.setenv("APERTO_CONFIG", str(file))
    result = aperto("models")
    assert result.exit_code == 2
    assert "did you mean 'effort'" in result.stderr
    assert aperto("models", "--help").exit_code == 0
    assert aperto("config", "path").stdout == f"{file}\n"


def test_config_show_prints_toml_that_is_read_back(aperto, tmp_path, monkeypatch):
    file = tmp_path / "config.toml"
    file.write_text('system = """\nSay "yes" \\\\ no.\n"""\ntemperature = 0.5\n')
    monkeypatch.setenv("APERTO_CONFIG", str(file))
    shown = aperto("config", "show").stdout
    file.write_text(shown)
    assert aperto("config", "show").stdout == shown
    assert "temperature = 0.5" in shown


def test_columns():
    assert columns([["a", "1"], ["bcd", "22"]], right=frozenset({1})) == "a     1\nbcd  22"
    assert columns([]) == ""


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen(
        [*MAIN, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(timeout=30)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from aperto.cli.main import app;"
        "heavy = {'numpy', 'rich', 'tiktoken', 'prompt_toolkit', 'huggingface_hub', 'torch'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
