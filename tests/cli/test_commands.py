"""The commands on files: results, reruns, broken files, exit statuses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import igfast
from igfast.cli import main
from tests.cli import factories

ROOT = Path(__file__).parent.parent.parent
MODEL = ("--model", "tests.cli.factories:network", "--size", "16", "--steps", "5")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.filterwarnings("ignore:the attributions do not sum")  # of few steps


def make_images(folder, n=20):
    """A folder of images, of which one is truncated and one is a text file."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(n):
        path = folder / f"image{i:02d}.png"
        Image.fromarray(rng.integers(0, 255, (24, 20, 3), np.uint8)).save(path)
    (folder / "image03.png").write_bytes((folder / "image03.png").read_bytes()[:300])
    (folder / "image07.png").write_text("not an image")
    return folder


def image(capsys, *arguments):
    status = main(["image", *map(str, arguments), *MODEL, "--json"])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_folder_with_broken_files(tmp_path, capsys):
    status, lines = image(capsys, make_images(tmp_path / "in"), "--out", tmp_path / "out")
    assert status == 2
    failed = {Path(line["path"]).name: line["error"] for line in lines if line["status"] == "failed"}
    assert set(failed) == {"image03.png", "image07.png"}
    assert "UnidentifiedImageError" in failed["image07.png"]
    assert sum(line["status"] == "done" for line in lines) == 18
    results = sorted((tmp_path / "out").iterdir())
    assert len(results) == 36
    explanation = igfast.Explanation.load(tmp_path / "out" / "image00.png.safetensors")
    direct = igfast.IntegratedGradients(factories.network()).attribute(
        explanation.inputs, explanation.baselines, explanation.target, n_steps=5
    )
    torch.testing.assert_close(explanation.attributions, direct)
    assert explanation.target == int(factories.network()(explanation.inputs).argmax())
    with Image.open(tmp_path / "out" / "image00.png.png") as picture:
        assert picture.width > 300


def test_a_rerun_computes_nothing_and_says_so(tmp_path, capsys):
    folder = make_images(tmp_path / "in")
    image(capsys, folder, "--out", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    status, lines = image(capsys, folder, "--out", tmp_path / "out")
    assert status == 2
    assert sum(line["status"] == "reused" for line in lines) == 18
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    main(["image", str(folder), "--out", str(tmp_path / "out"), *MODEL])
    assert capsys.readouterr().out.strip() == "18 had results already, 2 failed"


@pytest.mark.parametrize("change", [("--steps", "6"), ("--target", "1"), ("--baseline", "white"), ("--mean", "0.5")])
def test_other_options_are_computed_anew(tmp_path, capsys, change):
    folder = make_images(tmp_path / "in", n=8)
    image(capsys, folder / "image00.png", "--out", tmp_path / "out")
    status = main(["image", str(folder / "image00.png"), "--out", str(tmp_path / "out"), *MODEL, *change, "--json"])
    assert status == 0
    assert json.loads(capsys.readouterr().out)["status"] == "done"


def test_a_changed_file_is_computed_anew(tmp_path, capsys):
    folder = make_images(tmp_path / "in", n=8)
    image(capsys, folder / "image00.png", "--out", tmp_path / "out")
    (folder / "image00.png").write_bytes((folder / "image01.png").read_bytes())
    _, lines = image(capsys, folder / "image00.png", "--out", tmp_path / "out")
    assert lines[0]["status"] == "done"


def command(folder, out):
    return [sys.executable, "-m", "igfast", "image", str(folder), "--out", str(out), *MODEL, "--json"]


def start(folder, out):
    return subprocess.Popen(command(folder, out), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    folder, out = make_images(tmp_path / "in"), tmp_path / "out"
    process = start(folder, out)
    seen = [json.loads(process.stdout.readline()) for _ in range(7)]
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0].splitlines()
    first = {line["path"] for line in [*seen, *map(json.loads, rest)] if line["status"] == "done"}
    assert 5 <= len(first) < 18
    finished = subprocess.run(
        command(folder, out), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    lines = [json.loads(line) for line in finished.stdout.splitlines()]
    second = {line["path"] for line in lines if line["status"] == "done"}
    assert not first & second
    # One file may have been finished by the killed process without it having been said.
    assert len(first | second) in (17, 18)
    assert sum(line["status"] in ("done", "reused") for line in lines) == 18
    assert len(list(out.iterdir())) == 36  # and nothing that the killed process had begun
    for path in out.glob("*.safetensors"):
        igfast.Explanation.load(path)


def test_two_processes_share_a_folder(tmp_path):
    folder, out = make_images(tmp_path / "in"), tmp_path / "out"
    processes = [start(folder, out) for _ in range(2)]
    lines = [json.loads(line) for process in processes for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in processes] == [2, 2]
    done = [line["path"] for line in lines if line["status"] == "done"]
    assert len(done) == len(set(done)) == 18
    assert len(list(out.iterdir())) == 36


def test_files_of_one_name_from_several_folders(tmp_path, capsys):
    for name in ("a", "b"):
        make_images(tmp_path / name, n=8)
    status, lines = image(
        capsys, tmp_path / "a" / "image00.png", tmp_path / "b" / "image00.png", "--out", tmp_path / "o"
    )
    assert status == 0
    assert len({line["result"] for line in lines}) == 2


def test_progress_and_names_of_broken_files(tmp_path, capsys):
    folder = make_images(tmp_path / "in")
    assert main(["image", str(folder), "--out", str(tmp_path / "out"), *MODEL]) == 2
    captured = capsys.readouterr()
    assert captured.out.strip() == "18 explained, 2 failed"
    assert "image03.png: OSError" in captured.err
    assert "image07.png: UnidentifiedImageError" in captured.err


@pytest.mark.parametrize(("dtype", "mode"), [(np.uint16, "I;16"), (np.float32, "F")])
def test_pixels_of_more_than_8_bits_are_not_cut_off(dtype, mode, tmp_path, capsys):
    Image.fromarray(np.full((16, 16), 1000, dtype)).save(tmp_path / "deep.tif")
    assert main(["image", str(tmp_path / "deep.tif"), "--out", str(tmp_path / "out"), *MODEL]) == 2
    assert f"its pixels are of mode {mode}; convert them to 8 bits per channel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["image", "missing", *MODEL], "there is no file or folder missing"),
        (["image", ".empty", *MODEL], "there is no file in .empty"),
        (["image", "x.png", "--model", "nothing"], "--model must be package.module:factory; got 'nothing'"),
        (["image", "x.png", "--model", "nothing:x"], "No module named 'nothing'"),
        (["image", "x.png", "--model", "tests.cli.factories:x"], "has no attribute 'x'"),
        (["image", "x.png", "--model", "tests.cli.factories:calls"], "calls is a int, not a function"),
        (["image", "x.png", "--model", "tests.cli.factories:fails"], "the factory failed: RuntimeError"),
        (["image", "x.png", "--model", "tests.cli.factories:text"], "returned a tuple, not a torch.nn.Module"),
        (["image", "x.png", *MODEL, "--baseline", "x"], "--baseline must be one of black, white, zero, blurred, noise"),
        (["image", "x.png", *MODEL, "--target", "top"], "--target must be top1, top2 and so on, the number of a class"),
        (["image", "x.png", *MODEL, "--panels", "x"], "--panels must be some of input, overlay"),
        (["image", "x.png", *MODEL, "--steps", "0"], "--steps and --size must be at least 1"),
        (["image", "x.png", *MODEL, "--mean", "a"], "--mean must be numbers between commas; got 'a'"),
        (["image", "x.png", *MODEL, "--std", "0"], "--std must be positive"),
        (["image", "x.png", *MODEL, "--device", "what"], "--device what"),
        (["image", "x.png", *MODEL, "--weights", "x.png"], "--weights x.png"),
        (["image", "x.png"], "Missing option"),
        (["what"], "No such command"),
        (["text", "--model", "tests.cli.factories:text"], "there is no text"),
        (["text", "a", "--model", "tests.cli.factories:network"], "must return a model and a tokenizer"),
        (["text", "a", "--model", "tests.cli.factories:text", "--baseline", "unknown"], "no unk_token_id"),
        (["table", "missing.csv", "--model", "tests.cli.factories:table", "--out", "o.csv"], "there is no file"),
        (["report", "missing"], "there is no file or folder missing"),
        (["report", "x.png"], "x.png is not a whole file in safetensors' format"),
        (["diagnose", "missing.png", *MODEL], "an image cannot be read"),
        (["demo", "x"], "the demo is photograph, text or llm; got 'x'"),
    ],
)  # fmt: skip
def test_nothing_starts(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".empty").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    assert main(arguments) == 1
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_targets(tmp_path, capsys):
    folder = make_images(tmp_path / "in", n=8)
    arguments = ["image", str(folder / "image00.png"), "--out", str(tmp_path / "out"), *MODEL, "--json", "--target"]
    for target in ("top1", "top5", "2"):
        main(
            ["image", str(folder / "image00.png"), "--out", str(tmp_path / "out"), *MODEL, "--target", target, "--json"]
        )
        said = json.loads(capsys.readouterr().out)
        x = igfast.Explanation.load(said["result"]).inputs
        order = factories.network()(x)[0].argsort(descending=True).tolist()
        assert said["target"] == {"top1": order[0], "top5": order[4], "2": 2}[target]
    assert main([*arguments, "top6"]) == 2
    assert "top1 to top5" in capsys.readouterr().out


def test_weights(tmp_path, capsys):
    torch.manual_seed(1)
    state = {name: torch.randn_like(value) for name, value in factories.network().state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    folder = make_images(tmp_path / "in", n=8)
    _, plain = image(capsys, folder / "image00.png", "--out", tmp_path / "out")
    _, other = image(capsys, folder / "image00.png", "--out", tmp_path / "out", "--weights", tmp_path / "w.pt")
    assert other[0]["status"] == "done"
    assert other[0]["prediction"] != plain[0]["prediction"]


def test_text(tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("second one\n\nthird\n")
    arguments = ["text", "a <b>", "--file", str(tmp_path / "lines.txt"), "--model", "tests.cli.factories:text"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["a <b>", "second one", "third"]
    assert lines[2]["words"][0]["word"] == "[CLS]"
    assert len(lines[2]["words"]) == 7
    total = sum(word["score"] for word in lines[2]["words"])
    explanation = igfast.Explanation.load(tmp_path / "out" / "0003.safetensors")
    change = float(explanation.predictions - explanation.baseline_predictions)
    assert total == pytest.approx(change, abs=1e-4)
    assert "<b>" not in (tmp_path / "out" / "0001.html").read_text().split("<body>")[1].replace("&lt;b&gt;", "")
    assert main(arguments) == 0
    assert "[CLS]" in capsys.readouterr().out
    assert main([*arguments, "--baseline", "zero", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[0])
    total = sum(word["score"] for word in said["words"])
    bias = float(factories.text()[0].head.bias.detach()[said["target"]])  # what the model makes of zero embeddings
    assert total == pytest.approx(said["prediction"] - bias, abs=1e-4)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_table(ending, tmp_path, capsys, monkeypatch):
    import pandas

    monkeypatch.setattr("igfast.cli.table._BLOCK", 3)
    rng = np.random.default_rng(0)
    table = pandas.DataFrame(rng.random((7, 3)), columns=["a", "b", "c"])
    table.insert(1, "name", [f"row {i}" for i in range(7)])
    read, write = (getattr(pandas, f"read_{ending}"), getattr(table, f"to_{ending}"))
    write(tmp_path / f"data.{ending}", index=False)
    arguments = ["table", str(tmp_path / f"data.{ending}"), "--model", "tests.cli.factories:table", "--target", "none"]
    assert main([*arguments, "--out", str(tmp_path / f"out.{ending}"), "--steps", "20"]) == 0
    result = read(tmp_path / f"out.{ending}")
    assert list(result.columns) == [
        *table.columns, "attribution:a", "attribution:b", "attribution:c", "prediction", "delta"
    ]  # fmt: skip
    x = torch.tensor(table[["a", "b", "c"]].to_numpy())
    expected = igfast.IntegratedGradients(factories.table()).attribute(x, x.mean(0, keepdim=True), n_steps=20)
    np.testing.assert_allclose(result[[f"attribution:{c}" for c in "abc"]].to_numpy(), expected.numpy(), atol=1e-12)
    assert result["delta"].abs().max() < 1e-5
    assert list(result["name"]) == list(table["name"])


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a,b,c\n1,2,\n", [], "no number in row 1, column 'c'"),
        ("a,b,c\n", [], "has no rows"),
        ("a,b,c\n1,2,3\n", ["--columns", "a,x"], "has no column ['x']; it has ['a', 'b', 'c']"),
        ("a,b,c\n1,2,y\n", ["--columns", "a,b,c"], "--columns must name columns with numbers"),
        ("a,b,c\n1,2,3\n", ["--baseline", "x"], "--baseline must be mean, zero or a finite number; got 'x'"),
        ("", [], "cannot be read: EmptyDataError"),
    ],
)
def test_bad_tables(content, options, message, tmp_path, capsys):
    (tmp_path / "t.csv").write_text(content)
    arguments = ["table", str(tmp_path / "t.csv"), "--out", str(tmp_path / "o.csv"), "--target", "none"]
    assert main([*arguments, "--model", "tests.cli.factories:table", *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.csv").exists()


def test_a_table_is_copied_as_it_is_written(tmp_path):
    (tmp_path / "t.csv").write_text("id,a,b,c,note\n00123,1,2,3,NA\n00124,4,5,6,\n")
    arguments = ["table", str(tmp_path / "t.csv"), "--model", "tests.cli.factories:table", "--target", "none"]
    assert main([*arguments, "--columns", "a,b,c", "--out", str(tmp_path / "o.csv")]) == 0
    lines = (tmp_path / "o.csv").read_text().splitlines()
    assert [line.split(",")[:5] for line in lines[1:]] == [["00123", "1", "2", "3", "NA"], ["00124", "4", "5", "6", ""]]
    assert main([*arguments, "--columns", "a,b,c", "--out", str(tmp_path / "o.parquet")]) == 1
    arguments[1] = str(tmp_path / "o.csv")
    assert main([*arguments, "--columns", "a,b,c", "--out", str(tmp_path / "again.csv")]) == 1


def test_each_row_has_its_own_top_class(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(factories, "table", lambda: torch.nn.Identity())
    (tmp_path / "t.csv").write_text("a,b,c\n3,2,1\n1,2,3\n")
    arguments = ["table", str(tmp_path / "t.csv"), "--model", "tests.cli.factories:table", "--baseline", "zero"]
    assert main([*arguments, "--out", str(tmp_path / "o.csv")]) == 0
    rows = [line.split(",")[3:] for line in (tmp_path / "o.csv").read_text().splitlines()]
    assert rows[0][3:] == ["prediction", "delta", "target"]
    assert [row[5] for row in rows[1:]] == ["0", "2"]
    found = np.array([row[:4] for row in rows[1:]], dtype=float)
    np.testing.assert_allclose(found, [[3, 0, 0, 3], [0, 0, 3, 3]], atol=1e-5)


def test_results_of_other_files_are_not_replaced(tmp_path, capsys):
    for name in ("a", "b"):
        make_images(tmp_path / name, n=8)
    image(capsys, tmp_path / "a" / "image00.png", "--out", tmp_path / "out")
    status, lines = image(capsys, tmp_path / "b" / "image00.png", "--out", tmp_path / "out")
    assert status == 2
    assert "choose another --out" in lines[0]["error"]


def test_results_go_to_another_folder(tmp_path, capsys):
    folder = make_images(tmp_path / "in", n=8)
    for out in (folder, tmp_path):
        assert main(["image", str(folder), "--out", str(out), *MODEL]) == 1
        assert "--out must be another folder" in capsys.readouterr().err
    assert image(capsys, folder / "image00.png", "--out", folder)[0] == 0


def test_diagnose(tmp_path, capsys):
    folder = make_images(tmp_path / "in", n=8)
    paths = [str(folder / "image00.png"), str(folder / "image01.png")]
    assert main(["diagnose", *paths, *MODEL]) == 0
    assert "ok  output" in capsys.readouterr().out
    assert main(["diagnose", *paths, *MODEL, "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {finding["check"] for finding in findings} >= {"rows", "completeness", "symmetry"}


def test_report(tmp_path, capsys):
    explanation = igfast.IntegratedGradients(factories.table()).explain(torch.rand(2, 3).double())
    explanation.save(tmp_path / "result.safetensors")
    assert main(["report", str(tmp_path / "result.safetensors"), "--title", "Houses"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == tmp_path / "result.html"
    assert "<title>Houses</title>" in page.read_text()
    assert main(["report", str(tmp_path / "result.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["page"] == str(page)


COMMANDS = ("image", "text", "table", "diagnose", "report", "demo", "run", "info")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    if command == "run":
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
    else:
        assert main([command, "--help"]) == 0
    assert f"Example: igfast {command}" in " ".join(capsys.readouterr().out.split())


def test_interrupted_writes_leave_no_file(tmp_path):
    """A process that is killed while it writes leaves a hidden temporary file at most."""
    code = (
        "import sys, time; from pathlib import Path; from igfast.explanation.files import written\n"
        "with written(Path(sys.argv[1]) / 'result') as temporary:\n"
        "    temporary.write_text('half'); print('x', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert not (tmp_path / "result").exists()


def test_pixels_are_normalised_and_turned(tmp_path):
    image = pytest.importorskip("PIL.Image")
    picture = image.new("RGB", (16, 16), (255, 0, 51))
    picture.putpixel((0, 0), (0, 0, 0))
    exif = picture.getexif()
    exif[0x0112] = 3  # taken upside down
    picture.save(tmp_path / "a.png", exif=exif)
    options = ["--size", "16", "--steps", "5", "--mean", "0.5,0.4,0.3", "--std", "0.2,0.5,0.1"]
    assert main(["image", str(tmp_path / "a.png"), "--out", str(tmp_path / "o"), *MODEL[:2], *options]) == 0
    explanation = igfast.Explanation.load(tmp_path / "o" / "a.png.safetensors")
    torch.testing.assert_close(explanation.inputs[0, :, 3, 3], torch.tensor([2.5, -0.8, -1.0]))
    torch.testing.assert_close(explanation.inputs[0, :, 15, 15], torch.tensor([-2.5, -0.8, -3.0]))
    torch.testing.assert_close(explanation.baselines[0, :, 3, 3], torch.tensor([-2.5, -0.8, -3.0]))
