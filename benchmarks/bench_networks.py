"""Five networks, 50 steps: igfast and Captum without options, and Captum tuned; lean execution on and off.

igfast's calls come before, between and after those of Captum, in one process. Captum without options takes part in all
rounds, and so does each size of Captum that may be the fastest. Writes results/networks.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import igfast
from benchmarks import cases, harness

N_STEPS = 50
CAPTUM_SIZES = (2, 5, 10, 25)
LEAN_STEPS, LEAN_SIZE, LEAN_ROUNDS = 8, 4, 21

NETWORKS: dict[str, Callable[[], Callable[..., Any]]] = {
    "ResNet-50, 224x224": lambda: partial(cases.image_call, *cases.resnet50()),
    "EfficientNet-Lite0, 224x224": lambda: partial(cases.image_call, *cases.efficientnet()),
    "VGG-16, 224x224": lambda: partial(cases.image_call, *cases.vgg16()),
    "ViT-B/16, 224x224": lambda: partial(cases.image_call, *cases.vit()),
    "BERT-base, 128 tokens": lambda: partial(cases.text_call, *cases.bert(batch=1, tokens=128)),
}


def lean_ratio(call: Callable[..., Any]) -> float:
    """The time with lean execution over that without: median of the ratios of neighbouring calls."""
    options = {"n_steps": LEAN_STEPS, "internal_batch_size": LEAN_SIZE}
    on, off = (partial(call(igfast, lean=lean), **options) for lean in (True, False))
    seconds = harness.alternate({"on": on, "off": off}, LEAN_ROUNDS)
    return harness.ratio(seconds["on"], seconds["off"])


BUSY = ", beside a busy process"


def measure(name: str, rounds: int, suffix: str) -> list[dict[str, Any]]:
    """A record for each provider."""
    call = NETWORKS[name]()
    ratio = lean_ratio(call)
    print(f"{name}: lean on / off {ratio:.3f}", flush=True)
    calls = cases.captum_calls(call, N_STEPS, CAPTUM_SIZES)
    own, seconds, ratios = harness.beside(partial(call(igfast), n_steps=N_STEPS), calls, rounds, ["captum"])
    records = []
    for provider, taken in {"igfast": own, **seconds}.items():
        times = harness.percentiles(taken)
        to_ours = ratios.get(provider, 1.0)
        print(f"{name:<30} {provider:<32} {times['p50']:7.2f} s {to_ours:6.2f} x {taken}", flush=True)
        record = {"benchmark": "networks", "case": f"{name}, {N_STEPS} steps, float32{suffix}", "network": name}
        of_provider = {"provider": provider, "seconds": times, "time_ratio": to_ours, "rounds": len(taken)}
        records.append({**record, **of_provider, "lean_ratio": ratio})
    return records


def main() -> None:
    """Measures all networks, or some beside the records of the others, and writes the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--busy", action="store_true", help="while another process keeps one core busy")
    options = parser.parse_args()
    for name in options.networks:
        with harness.beside_a_busy_process(options.busy):
            records = measure(name, options.rounds, BUSY if options.busy else "")
        print(harness.update("networks", records), flush=True)


if __name__ == "__main__":
    main()
