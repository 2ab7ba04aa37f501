"""The commands and their options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import igfast
from igfast.cli.folder import ALL_DONE, NOTHING_STARTED, SOME_FAILED, as_line, figures_of, jobs_of, run_jobs
from igfast.cli.images import ENDINGS, image_request, images_in
from igfast.cli.models import load_model, output_of, targets_of
from igfast.errors import CommandError, MissingPackageError
from igfast.explanation.files import written

_statuses: list[int] = []  # of the commands that ran to their end


_INTERRUPTED = 130  # typer's status after Ctrl-C


def run_app(arguments: list[str]) -> int:
    """Runs a command and returns its status; 1 for arguments that no command takes."""
    _statuses.clear()
    try:
        app(arguments, prog_name="igfast")
    except SystemExit as stopped:  # for wrong arguments with status 2, which here means that a part of the work failed
        if stopped.code == _INTERRUPTED:
            raise KeyboardInterrupt from None
        if isinstance(stopped.code, str):  # of the user's code
            raise CommandError(stopped.code) from None
        return _statuses[0] if _statuses else min(int(stopped.code or 0), NOTHING_STARTED)
    return ALL_DONE


def _keep(status: int) -> None:
    _statuses.append(status)


app = typer.Typer(
    name="igfast",
    result_callback=_keep,
    pretty_exceptions_enable=False,
    help="Integrated Gradients in about the memory of an inference pass.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

Model = Annotated[str, typer.Option(help="The function that makes the model: package.module:factory.")]
Weights = Annotated[Path | None, typer.Option(help="A state dictionary to load (PyTorch or safetensors).")]
Target = Annotated[str, typer.Option(help="top1, top2, ..., the number of a class, or none for one output.")]
Steps = Annotated[int, typer.Option(help="Points along the path.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
IMAGENET_MEAN, IMAGENET_STD = "0.485,0.456,0.406", "0.229,0.224,0.225"
Mean = Annotated[str, typer.Option(help="What the normalisation subtracts from pixels in [0, 1].")]
Std = Annotated[str, typer.Option(help="What the normalisation divides by.")]
ImageBaseline = Annotated[str, typer.Option(help="black, white, zero, blurred or noise.")]
Size = Annotated[int, typer.Option(help="Pixels on each side of what the model sees.")]


@app.command(epilog="Example: igfast image photos --model torchvision.models:resnet50 --weights resnet50.pth --out out")
def image(
    paths: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="The folder of the results.")] = Path("igfast-out"),
    weights: Weights = None,
    target: Target = "top1",
    baseline: ImageBaseline = "black",
    steps: Steps = 50,
    size: Size = 224,
    mean: Mean = IMAGENET_MEAN,
    std: Std = IMAGENET_STD,
    classes: Annotated[Path | None, typer.Option(help="A file with the name of a class on each line.")] = None,
    panels: Annotated[str, typer.Option(help="Of the picture: input, overlay, heat_map, reveal, outlines.")] = (
        "input,overlay"
    ),
    device: Device = "cpu",
    as_json: AsJson = False,
) -> int:
    """Explain image files: a picture and a result for each.

    A run that was stopped goes on where it stopped. Files that cannot be read are named and passed over.
    """
    jobs = jobs_of(paths, out, ENDINGS)
    request = image_request(
        load_model(model, weights, device),
        model,
        target=target,
        baseline=baseline,
        n_steps=steps,
        size=size,
        mean=mean,
        std=std,
        panels=panels,
        classes=classes,
    )
    return run_jobs(jobs, request.record, request.explain, request.draw, as_json=as_json)


@app.command(epilog='Example: igfast text "I love you, but I also dislike you" --model path/to/a/classifier')
def text(
    model: Annotated[str, typer.Option(help="A folder or name for transformers, or package.module:factory.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts, in quotes.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with a text on each line.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for results and a page.")] = None,
    weights: Weights = None,
    target: Target = "top1",
    baseline: Annotated[str, typer.Option(help="In the place of words: pad, mask, unknown or zero.")] = "pad",
    steps: Steps = 50,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> int:
    """Explain texts: which words speak for the prediction (green) and which against it (red)."""
    from rich.console import Console

    from igfast.cli.text import check_text_options, explain_text, load_text_model, sentences_of

    lines = sentences_of(texts or [], file)
    check_text_options(target, baseline, steps)
    loaded, tokenizer = load_text_model(model, weights, device)
    console, n_failed = Console(), 0
    for number, line in enumerate(lines, 1):
        files = [] if out is None else [out / f"{number:04d}{ending}" for ending in (".safetensors", ".html")]
        try:
            explanation = explain_text(
                loaded, tokenizer, line, target=target, baseline=baseline, n_steps=steps, device=device
            )
            tokens = igfast.viz.tokens_of(explanation)
            if files:
                files[0].unlink(missing_ok=True)  # an earlier run's, which the new page is not of
                _write(files[1], igfast.viz.report(explanation, title=line))
                explanation.save(files[0])
        except (CommandError, MissingPackageError, OSError):
            raise  # an option is wrong or a file cannot be written, for every text
        except Exception as error:  # a model may raise anything for a text that it does not take
            n_failed += 1
            for path in files:
                path.unlink(missing_ok=True)  # of an earlier run
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            print(as_line({"text": line, "error": said}) if as_json else f"{line}: {said}", flush=True)
            continue
        if as_json:
            words = [{"word": word, "score": score} for word, score in zip(tokens.words, tokens.scores, strict=True)]
            print(as_line({"text": line, **figures_of(explanation), "words": words}), flush=True)
        else:
            console.print(igfast.viz.text_terminal(tokens), "")
    return SOME_FAILED if n_failed else ALL_DONE


@app.command(epilog="Example: igfast table houses.csv --model mymodels:houses --target none --out explained.csv")
def table(
    data: Annotated[Path, typer.Argument(help="A CSV or Parquet file.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="The table with attributions, in the same format.")],
    columns: Annotated[str, typer.Option(help="What the model takes, between commas; all numbers if empty.")] = "",
    weights: Weights = None,
    target: Target = "top1",
    baseline: Annotated[str, typer.Option(help="mean, zero or a number.")] = "mean",
    steps: Steps = 50,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> int:
    """Explain the rows of a table: the same table comes out with a column of attributions for each column."""
    from igfast.cli.table import explain_table

    if not data.is_file():
        raise CommandError(f"there is no file {data}")
    loaded = load_model(model, weights, device)
    names = [name.strip() for name in columns.split(",") if name.strip()]
    options: dict[str, Any] = {"columns": names, "target": target, "baseline": baseline, "n_steps": steps}
    n_rows = explain_table(loaded, data, out, **options, progress=not as_json)
    print(json.dumps({"rows": n_rows, "result": str(out)}) if as_json else f"{n_rows} rows explained in {out}")
    return ALL_DONE


@app.command(epilog="Example: igfast diagnose cat.jpg --model torchvision.models:resnet50 --weights resnet50.pth")
def diagnose(
    paths: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Model,
    weights: Weights = None,
    target: Target = "top1",
    baseline: ImageBaseline = "black",
    steps: Steps = 50,
    size: Size = 224,
    mean: Mean = IMAGENET_MEAN,
    std: Std = IMAGENET_STD,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> int:
    """Check whether attributions of a model can be believed. The exit status is 2 if something is wrong."""
    options: dict[str, Any] = {"target": target, "baseline": baseline, "n_steps": steps, "size": size}
    loaded = load_model(model, weights, device)
    request = image_request(loaded, model, **options, mean=mean, std=std, panels="input")
    try:
        x = torch.cat([request.read(path) for path in images_in(paths)])
    except OSError as error:
        raise CommandError(f"an image cannot be read: {error}") from error
    picked = targets_of(target, output_of(loaded, x, "the images"))
    found = igfast.diagnose(loaded, x, picked, request.start(x), n_steps=steps, max_steps=max(800, 4 * steps))
    if as_json:
        print(as_line([{**vars(f), "figures": dict(f.figures)} for f in found.findings]))
    else:
        print(found)
    return ALL_DONE if found.good else SOME_FAILED


@app.command(epilog="Example: igfast report igfast-out --sort prediction --out photos.html")
def report(
    result: Annotated[
        Path, typer.Argument(help="A result of igfast image or igfast text, a saved Explanation, or a folder of them.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; beside the result, or in the folder, if not given.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "",
    sort: Annotated[str, typer.Option(help="Of a folder: name, prediction (largest first) or delta.")] = "name",
    as_json: AsJson = False,
) -> int:
    """Make a page of HTML of a result, or of all results in a folder, which works offline."""
    from igfast.cli.results import explanation_page, folder_page

    if not result.exists():
        raise CommandError(f"there is no file or folder {result}")
    page = out or (result / "index.html" if result.is_dir() else result.with_suffix(".html"))
    if page.resolve() == result.resolve():
        raise CommandError(f"--out must be another file than the result; got {page}")
    n_failed = 0
    if result.is_dir():
        made, n_failed = folder_page(result, page, title or str(result), sort)
    else:
        made = explanation_page(result, title or "Explanation")
    _write(page, made)
    print(json.dumps({"result": str(result), "page": str(page)}) if as_json else page)
    return SOME_FAILED if n_failed else ALL_DONE


@app.command(epilog="Example: igfast demo text --out my-demo")
def demo(
    subject: Annotated[str, typer.Argument(help="photograph, text or llm.")] = "photograph",
    out: Annotated[Path, typer.Option(help="The folder for what is written.")] = Path("igfast-demo"),
    n_steps: Annotated[int, typer.Option("--n-steps", "--steps", help="Points along the path.")] = 50,
    large_side: Annotated[
        int | None, typer.Option(help="Side of the large image; without it, where Captum's default no longer fits.")
    ] = None,
) -> int:
    """Explain a photograph or a language model's answer with igfast and with Captum, side by side, or a text."""
    if subject == "text":
        from igfast.cli.demo_text import run_text_demo

        run_text_demo(out, n_steps)
    elif subject == "llm":
        from igfast.cli.demo_llm import run_llm_demo

        run_llm_demo(out, n_steps)
    elif subject == "photograph":
        from igfast.cli.demo_photograph import run_demo

        run_demo(out, n_steps, large_side)
    else:
        raise CommandError(f"the demo is photograph, text or llm; got {subject!r}")
    return ALL_DONE


@app.command(epilog="Example: igfast run train.py --epochs 3")
def run() -> None:  # for the list of commands: `igfast.cli.main` runs it
    """Run an unmodified script with igfast in Captum's place."""


@app.command(epilog="Example: igfast info")
def info() -> None:  # likewise
    """Print versions and how the kernels were built, for bug reports."""


def _write(path: Path, page: str) -> None:
    with written(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
