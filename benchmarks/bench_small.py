"""Small models, 50 steps, on which the work around the model can take as long as the model itself.

igfast against Captum without options, and with each size that may be the fastest. A sample is the mean of several
calls, and the providers take turns. Writes results/small.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import igfast
from benchmarks import cases, harness
from benchmarks.bench_networks import BUSY

N_STEPS = 50
CAPTUM_STEPS = (5, 10, 25, 50)  # internal_batch_size is this many times the number of examples
ROUNDS = 40
SECONDS_PER_SAMPLE = 0.05

MODELS: dict[str, tuple[Callable[[], tuple[torch.nn.Module, torch.Tensor]], int]] = {  # model, number of examples
    "MLP of 6 layers, 1 example": (cases.small_mlp, 1),
    "MLP of 6 layers, 100 examples": (cases.small_mlp, 100),
    "CNN of 5 layers, 1 image of 32x32": (cases.small_cnn, 1),
}


def measure(name: str, suffix: str) -> list[dict[str, Any]]:
    """A record for each provider."""
    make, n_examples = MODELS[name]
    network, example = make()
    torch.manual_seed(1)
    call = partial(cases.image_call, network, torch.randn(n_examples, *example.shape[1:]))
    ours = partial(call(igfast), n_steps=N_STEPS)
    calls = {"igfast": ours, **cases.captum_calls(call, N_STEPS, (n_examples * steps for steps in CAPTUM_STEPS))}
    (trial,) = harness.alternate({"": ours}, 1).values()
    n_calls = max(1, round(SECONDS_PER_SAMPLE / trial[0]))
    samples = harness.alternate({provider: harness.repeated(one, n_calls) for provider, one in calls.items()}, ROUNDS)
    records = []
    for provider, taken in samples.items():
        times = harness.percentiles([seconds / n_calls for seconds in taken])
        to_ours = harness.ratio(taken, samples["igfast"])
        print(f"{name:<36} {provider:<32} {1e3 * times['p50']:8.2f} ms {to_ours:6.2f} x", flush=True)
        record = {"benchmark": "small", "case": f"{name}, {N_STEPS} steps, float32{suffix}", "network": name}
        records.append({**record, "provider": provider, "seconds": times, "time_ratio": to_ours, "rounds": ROUNDS})
    return records


def main() -> None:
    """Measures all models, or some beside the records of the others, and writes the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--busy", action="store_true", help="while another process keeps one core busy")
    options = parser.parse_args()
    for name in options.models:
        with harness.beside_a_busy_process(options.busy):
            records = measure(name, BUSY if options.busy else "")
        print(harness.update("small", records), flush=True)


if __name__ == "__main__":
    main()
