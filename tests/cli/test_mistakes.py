"""Mistakes of the user's that commands say in a line: modules that fail, files that are missing, an interrupt."""

import sys

import pytest
from PIL import Image

from igfast.cli import main
from tests.cli.test_commands import MODEL, make_images


def broken(tmp_path, monkeypatch, content):
    (tmp_path / "broken_module.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    Image.new("RGB", (20, 20)).save("x.png")
    return main(["image", "x.png", "--model", "broken_module:make"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("def make(:\n", "the import failed: SyntaxError"),
        ("1 / 0\n", "broken_module.py, line 1)"),
        ("def make():\n    raise ValueError('no\\nweights')\n", "ValueError: no weights ("),
        ("def make():\n    raise SystemExit('set DATA_DIR')\n", "set DATA_DIR"),
    ],
)
def test_modules_of_the_user_that_fail(content, said, tmp_path, monkeypatch, capsys):
    assert broken(tmp_path, monkeypatch, content) == 1
    assert said in capsys.readouterr().err


def test_an_interrupt_is_told(tmp_path, monkeypatch, capsys):
    assert broken(tmp_path, monkeypatch, "def make():\n    raise KeyboardInterrupt\n") == 1
    assert "igfast: stopped" in capsys.readouterr().err


def test_a_script_that_is_not_there(capsys):
    assert main(["run", "no_such_script.py"]) == 1
    assert "there is no no_such_script.py" in capsys.readouterr().err


def test_means_of_pixels_of_255(tmp_path, capsys):
    make_images(tmp_path / "in", 9)
    assert main(["image", str(tmp_path / "in"), *MODEL, "--mean", "123,116,103", "--std", "58,57,57"]) == 1
    assert "of pixels in [0, 1]" in capsys.readouterr().err
