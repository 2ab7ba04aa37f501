"""Pages of results, of a file and of a folder, and folders that are diagnosed."""

import numpy as np
import pytest
from PIL import Image

import igfast
from igfast.cli import main
from tests.cli.test_commands import MODEL, image, make_images

pytestmark = pytest.mark.filterwarnings("ignore:the attributions do not sum")  # of few steps


def test_a_page_of_a_folder(tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\nfox\nowl\nbee\n", encoding="utf-8")
    out = tmp_path / "out"
    image(capsys, make_images(tmp_path / "in", 8), "--out", out, "--classes", names)
    explanations = {path: igfast.Explanation.load(path) for path in out.rglob("*.safetensors")}
    assert all(set(e.target_names.values()) <= set(names.read_text().split()) for e in explanations.values())
    assert main(["report", str(out), "--sort", "prediction", "--title", "Six"]) == 0
    page = (out / "index.html").read_text()
    assert page.count("<img") == len(explanations) == 6
    order = sorted(explanations, key=lambda path: -float(explanations[path].predictions[0]))
    places = [page.index(f"<strong>{path.stem}</strong>") for path in order]
    assert places == sorted(places)
    assert f'href="{order[0].stem}.png"' in page
    (out / "broken.safetensors").write_text("no result")
    assert main(["report", str(out), "--json"]) == 2
    assert "broken.safetensors" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "in")]) == 1
    assert "there is no result in" in capsys.readouterr().err
    assert main(["report", str(out), "--sort", "size"]) == 1


def test_a_page_shows_pixels_as_they_were(tmp_path, capsys, monkeypatch):
    image(capsys, make_images(tmp_path / "in", 8), "--out", tmp_path / "out")
    seen = []
    drawn = igfast.viz.page.plot
    monkeypatch.setattr(igfast.viz.page, "plot", lambda e, **options: seen.append(e.inputs) or drawn(e, **options))
    assert main(["report", str(tmp_path / "out" / "image00.png.safetensors")]) == 0
    with Image.open(tmp_path / "in" / "image00.png") as picture:
        assert abs(float(seen[0].mean()) - np.asarray(picture).mean() / 255) < 0.02


def test_folders_are_diagnosed(tmp_path, capsys):
    make_images(tmp_path / "in", 8)
    for name in ("image03.png", "image07.png"):
        (tmp_path / "in" / name).unlink()
    assert main(["diagnose", str(tmp_path / "in"), *MODEL, "--json"]) in (0, 2)
    (tmp_path / "none").mkdir()
    assert main(["diagnose", str(tmp_path / "none"), *MODEL]) == 1
    assert "there is no image in" in capsys.readouterr().err
