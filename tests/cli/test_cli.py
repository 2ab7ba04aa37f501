import json
import re

import pytest

import igfast
from igfast.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:the attributions do not sum")  # of few steps


def test_info(capsys):
    assert main(["info"]) == 0
    assert json.loads(capsys.readouterr().out)["igfast"] == igfast.__version__


def test_no_command_is_explained(capsys):
    assert main([]) == 1
    captured = capsys.readouterr()
    assert "demo" in captured.out + captured.err


def test_demo_writes_picture_and_record(tmp_path, capfd):
    assert main(["demo", "--out", str(tmp_path / "new"), "--n-steps", "2", "--large-side", "256"]) == 0
    out, err = capfd.readouterr()
    record = json.loads((tmp_path / "new" / "record.json").read_text())
    assert [(m["library"], m["side"]) for m in record["measurements"]] == [
        ("igfast", 224),
        ("captum", 224),
        ("igfast", 256),
        ("captum", 256),
    ]
    assert all(m["seconds"] > 0 and m["peak_bytes"] > 0 for m in record["measurements"])
    assert (tmp_path / "new" / "attribution.png").read_bytes().startswith(b"\x89PNG")
    assert "Egyptian cat" in out
    assert "224x224" in out
    assert "256x256" in out
    assert out.strip().endswith("record.json.")
    assert "row/s" in err


def test_demo_text_colours_tokens_and_writes_a_page(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert main(["demo", "text", "--out", str(tmp_path / "new"), "--n-steps", "20"]) == 0
    out = capfd.readouterr().out
    scores = dict(re.findall(r"(\w+) ([+-]\d+\.\d+)", re.sub(r"\x1b\[[\d;]*m", "", out)))
    assert float(scores["love"]) > 0.3
    assert float(scores["dislike"]) < -0.3
    assert float(scores["cat"]) > 0.1  # the most alike word of the second sentence
    assert "\x1b[30;48;2;" in out
    page = (tmp_path / "new" / "text.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "dislike</span>" in page
