"""Which words of a sentence speak for a good mood, and how many steps it takes to know.

"I love you, but I also kind of dislike you" on MiniLM, with a head for sentiment that is fitted to a lexicon, at 20,
50, 100 and 300 steps.

    python -m examples.sentiment --out folder
"""

from __future__ import annotations

import argparse
from pathlib import Path

import igfast
from igfast.cli.demo_text import SENTENCE, fit_sentiment, load_encoder

STEPS = (20, 50, 100, 300)


def run(out: Path) -> dict[str, float]:
    """Explains the sentence at each number of steps, draws, and returns the deltas and two words' scores."""
    out.mkdir(parents=True, exist_ok=True)
    encoder, tokenizer = load_encoder()
    model, accuracy = fit_sentiment(encoder, tokenizer)
    encoded = tokenizer([SENTENCE], return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    tokens = tokenizer.convert_ids_to_tokens(ids[0].tolist())
    explainer = igfast.LayerIntegratedGradients(model, encoder.transformer.get_input_embeddings())
    baseline = igfast.baselines.pad_tokens(ids, tokenizer)
    rows, figures = [], {"accuracy of the head": accuracy}
    for n_steps in STEPS:
        explanation = explainer.explain(ids, baseline, 0, mask, n_steps, feature_names=[tokens])
        rows.append(igfast.viz.tokens_of(explanation, title=f"{n_steps} steps, delta {float(explanation.deltas):.1g}"))
        figures[f"delta at {n_steps} steps"] = abs(float(explanation.deltas))
    scores = dict(zip(rows[-1].words, rows[-1].scores, strict=True))
    igfast.viz.save(igfast.viz.text_figure(rows), out / "sentiment.png")
    (out / "sentiment.html").write_text(igfast.viz.text_page(rows), encoding="utf-8")
    return {**figures, "love": scores["love"], "dislike": scores["dislike"]}


def main() -> None:
    """Runs the walk-through, and fails if its claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("igfast-examples"))
    figures = run(parser.parse_args().out)
    print("\n".join(f"{name}: {value:.4g}" for name, value in figures.items()))
    assert figures["love"] > 0 > figures["dislike"]
    assert figures["delta at 300 steps"] < 0.01 * abs(figures["love"])


if __name__ == "__main__":
    main()
