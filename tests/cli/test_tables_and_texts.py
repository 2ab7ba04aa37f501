"""Tables and texts as people have them: compressed, with a stray column, in other scripts, with one that fails."""

import gzip
import json
import threading

import pytest
import torch
from torch import nn

import igfast
from igfast.cli import folder, main
from tests.cli import factories

pytestmark = pytest.mark.filterwarnings("ignore:the attributions do not sum")  # of few steps


class InPlace(nn.Module):
    """Normalises its argument in place."""

    def forward(self, x):
        x -= 1
        x *= 2
        return x.sum(1, keepdim=True)


def table(tmp_path, content, *options, name="t.csv", out="o.csv", target="none"):
    if content is not None:
        (tmp_path / name).write_text(content)
    arguments = ["table", str(tmp_path / name), "--out", str(tmp_path / out), "--target", target]
    return main([*arguments, "--model", "tests.cli.factories:table", "--baseline", "zero", *options])


@pytest.mark.parametrize("target", ["none", "0"])
def test_a_model_that_works_in_place(target, tmp_path, monkeypatch):
    monkeypatch.setattr(factories, "table", lambda: InPlace().double())
    assert table(tmp_path, "a,b\n3,5\n", target=target) == 0
    values = (tmp_path / "o.csv").read_text().splitlines()[1].split(",")
    assert [float(value) for value in values[2:5]] == pytest.approx([6, 10, 12])  # 2 a, 2 b and F, not done twice


@pytest.mark.parametrize("content", ["a,b,c\n1,2,3,\n4,5,6,\n", "a,b,c\nr1,1,2,3\nr2,4,5,6\n"])
@pytest.mark.parametrize("options", [[], ["--columns", "a,b,c"]])
def test_rows_with_more_values_than_the_header(content, options, tmp_path, capsys):
    assert table(tmp_path, content, *options) == 1
    assert "has rows with more values than the header has names" in capsys.readouterr().err


def test_compressed_tables(tmp_path, capsys):
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write("a,b,c\n1,2,3\n")
    assert table(tmp_path, None, name="t.csv.gz", out="o.csv.gz") == 0
    with gzip.open(tmp_path / "o.csv.gz", "rt") as file:
        assert file.readline().startswith("a,b,c,attribution:a")
    for ending in ("zip", "zst"):
        assert table(tmp_path, None, name="t.csv.gz", out=f"o.csv.{ending}") == 1
        assert "--out may be compressed as .gz" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr("igfast.cli.table._explained", lambda *_: calls.append(1))
    (tmp_path / "o.csv").mkdir()
    assert table(tmp_path, "a,b,c\n1,2,3\n") == 1
    assert "is a folder, not a file" in capsys.readouterr().err
    assert not calls


def text(capsys, *arguments):
    status = main(["text", *map(str, arguments), "--model", "tests.cli.factories:text", "--steps", "5", "--json"])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_lines_end_where_line_breaks_are(tmp_path, capsys):
    (tmp_path / "lines.txt").write_bytes("\ufeffone\u2028line\x0bof\x85all\r\ntwo\n".encode())
    status, lines = text(capsys, "--file", tmp_path / "lines.txt")
    assert status == 0
    assert [line["text"] for line in lines] == ["one\u2028line\x0bof\x85all", "two"]


def test_a_text_that_fails_leaves_the_others_and_no_file_of_an_earlier_run(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert text(capsys, "one", "two", "three", "--out", out)[0] == 0

    class Fails(factories.Classifier):
        def forward(self, ids, attention_mask):
            output = super().forward(ids, attention_mask)
            return output * float("nan") if ids.shape[1] == 6 else output  # of "four"

    monkeypatch.setattr(factories, "text", lambda: (Fails(), factories.Tokenizer()))
    with pytest.warns(igfast.IgfastWarning):
        status, lines = text(capsys, "one", "four", "three", "--out", out)
    assert status == 2
    assert ["error" in line for line in lines] == [False, True, False]
    assert sorted(path.name for path in out.iterdir()) == [
        "0001.html", "0001.safetensors", "0003.html", "0003.safetensors"
    ]  # fmt: skip


def test_a_text_without_tokens_is_one_of_several(capsys, monkeypatch):
    class Bare(factories.Tokenizer):
        def __call__(self, text, **options):
            encoded = super().__call__(text, **options)
            return factories.Encoded({name: ids[:, 1:-1] for name, ids in encoded.items()})

        def convert_ids_to_tokens(self, ids):
            return [str(i) for i in ids]

    monkeypatch.setattr(factories, "text", lambda: (factories.Classifier(), Bare()))
    status, lines = text(capsys, "", "good")
    assert status == 2
    assert "has no tokens" in lines[0]["error"]
    assert "words" in lines[1]


def test_files_of_one_name_explained_at_the_same_time(tmp_path):
    """The second process finds the first one's result when it comes to write its own."""
    explanation = igfast.IntegratedGradients(factories.table()).explain(torch.rand(1, 3).double())
    began, found = threading.Barrier(2), []

    def explain(_):
        began.wait(30)
        return explanation

    def run(name):
        (tmp_path / name).touch()
        job = folder.Job(tmp_path / name, tmp_path / "out" / "x.safetensors", tmp_path / "out" / "x.png")
        request_of, draw = (lambda path: {"source": str(path)}), (lambda _, path: path.write_text("picture"))
        found.append(folder._one(job, request_of, explain, draw, True))

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _ in found) == ["done", "failed"]
    assert "choose another --out" in next(said["error"] for status, said in found if status == "failed")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.png", "x.safetensors"]


def test_a_table_is_not_written_over_itself(tmp_path, capsys):
    assert table(tmp_path, "a,b,c\n1,2,3\n", out="t.csv") == 1
    assert (tmp_path / "t.csv").read_text() == "a,b,c\n1,2,3\n"
    assert "another file" in capsys.readouterr().err


def test_columns_that_the_model_does_not_take_are_named(tmp_path, capsys):
    assert table(tmp_path, "id,a,b,c\n1,1,2,3\n") == 1
    assert "rows of the columns id, a, b, c" in capsys.readouterr().err
    assert not (tmp_path / "o.csv").exists()


def test_a_table_whose_columns_are_numbered(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).to_parquet(tmp_path / "t.parquet")
    assert table(tmp_path, None, name="t.parquet", out="o.parquet") == 0
    written = pandas.read_parquet(tmp_path / "o.parquet")
    assert list(written.columns)[:4] == ["0", "1", "2", "attribution:0"]


def test_weights_of_integers_before_floating_ones(tmp_path, monkeypatch):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.code = nn.Parameter(torch.ones(1, dtype=torch.int8), requires_grad=False)
            self.layer = nn.Linear(2, 1, bias=False).double()
            nn.init.ones_(self.layer.weight)

        def forward(self, x):
            return self.layer(x.double())

    monkeypatch.setattr(factories, "table", Packed)
    assert table(tmp_path, "a,b\n0.25,0.5\n") == 0
    values = (tmp_path / "o.csv").read_text().splitlines()[1].split(",")
    assert [float(value) for value in values[2:5]] == pytest.approx([0.25, 0.5, 0.75])


@pytest.mark.parametrize("wrong", [["--baseline", "padd"], ["--steps", "0"], ["--target", "best"]])
def test_a_wrong_option_leaves_earlier_results(tmp_path, wrong):
    given = ["text", "good", "--model", "tests.cli.factories:text", "--out", str(tmp_path), "--steps", "5"]
    assert main(given) == 0
    before = sorted(path.name for path in tmp_path.iterdir())
    assert before == ["0001.html", "0001.safetensors"]
    assert main([*given, *wrong]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_pictures_do_not_replace_photographs(tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    for name in ("a.jpg", "a.jpg.png"):
        image.new("RGB", (16, 16)).save(tmp_path / name)
    before = (tmp_path / "a.jpg.png").read_bytes()
    files = [str(tmp_path / "a.jpg"), str(tmp_path / "a.jpg.png")]
    options = ["--out", str(tmp_path), "--model", "tests.cli.factories:network", "--size", "16", "--steps", "5"]
    assert main(["image", *files, *options]) == 1
    assert (tmp_path / "a.jpg.png").read_bytes() == before
    assert "would be replaced" in capsys.readouterr().err


def test_a_page_is_not_written_over_its_result(tmp_path):
    explanation = igfast.IntegratedGradients(nn.Linear(3, 2)).explain(torch.ones(1, 3), target=0)
    explanation.save(tmp_path / "r.safetensors")
    before = (tmp_path / "r.safetensors").read_bytes()
    assert main(["report", str(tmp_path / "r.safetensors"), "--out", str(tmp_path / "r.safetensors")]) == 1
    assert (tmp_path / "r.safetensors").read_bytes() == before


def test_a_classifier_with_an_encoder_and_a_decoder_is_refused(tmp_path, monkeypatch, capsys):
    model, tokenizer = factories.text()
    model.config = type("Config", (), {"is_encoder_decoder": True})()
    monkeypatch.setattr(factories, "text", lambda: (model, tokenizer))
    main(["text", "good", "--model", "tests.cli.factories:text"])
    assert "encoder and its decoder" in capsys.readouterr().err


def test_a_number_is_the_baseline_of_every_column(tmp_path):
    model = factories.table()
    assert table(tmp_path, "a,b,c\n1,2,3\n", "--baseline", "0.5") == 0
    values = [float(v) for v in (tmp_path / "o.csv").read_text().splitlines()[1].split(",")]
    with torch.no_grad():
        change = model(torch.tensor([[1.0, 2.0, 3.0]]).double()) - model(torch.full((1, 3), 0.5).double())
    assert sum(values[3:6]) == pytest.approx(float(change), abs=1e-4)


def test_words_are_masked_and_long_texts_are_cut(tmp_path, monkeypatch):
    model, tokenizer = factories.text()
    asked = []

    class Cuts(type(tokenizer)):
        def __call__(self, text, return_tensors, truncation):
            asked.append(truncation)
            return super().__call__(text, return_tensors=return_tensors, truncation=truncation)

    monkeypatch.setattr(factories, "text", lambda: (model, Cuts()))
    given = ["text", "good", "--model", "tests.cli.factories:text", "--out", str(tmp_path), "--steps", "5"]
    assert main([*given, "--baseline", "mask"]) == 0
    explanation = igfast.Explanation.load(tmp_path / "0001.safetensors")
    assert explanation.baselines.tolist() == [[2, 1, 1, 1, 1, 3]]
    assert asked == [True, False]  # whole, to tell what is cut


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("a,b,c\n1,2,3\n4,5,6\n", ["--columns", "a,a,b"], "--columns must name each column once"),
        ("1,2,3\n4,5,6\n", [], "must begin with names of columns; got 1, 2, 3"),
        ("a,b,c\n1,2,3\n", ["--baseline", "mean"], "the row itself where there is one"),
        ("a,b,c\n1,2,3\n", ["--baseline", "nan"], "a finite number; got 'nan'"),
        ("a,b,c\n1,2,3\n", ["--baseline", "inf"], "a finite number; got 'inf'"),
    ],
)
def test_tables_and_options_that_make_no_sense(content, options, said, tmp_path, capsys):
    assert table(tmp_path, content, *options) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o.csv").exists()


def test_numbers_that_the_models_dtype_does_not_hold(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(factories, "table", lambda: nn.Linear(2, 1))
    assert table(tmp_path, "a,b\n1,1e39\n2,3\n") == 1
    assert "infinite in the model's dtype, torch.float32" in capsys.readouterr().err


def test_a_text_that_is_cut_off_is_told(capsys, monkeypatch):
    class Short(factories.Tokenizer):
        def __call__(self, text, return_tensors, truncation):
            return super().__call__(text[:3] if truncation else text, return_tensors, truncation)

    model, _ = factories.text()
    monkeypatch.setattr(factories, "text", lambda: (model, Short()))
    with pytest.warns(igfast.IgfastWarning, match="takes 5 tokens, and the text has 13"):
        assert text(capsys, "a long text")[0] in (0, 2)
