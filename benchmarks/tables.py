"""Writes the tables of the README and of pages in docs from the committed records: `python -m benchmarks.tables`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from benchmarks import bench_tolerance, harness
from benchmarks.bench_networks import BUSY


def _providers(name: str, call: str) -> list[str]:
    """Time and memory of each provider, and both as ratios to the first, a call of igfast without options."""
    records = harness.read(name)
    ours = records[0]
    lines = [
        f"| {call} | median seconds | peak memory | time / igfast's | memory / igfast's |",
        "|---|---|---|---|---|",
    ]
    for r in records:
        seconds, peak = r["seconds"]["p50"], r["peak_bytes"]
        time_ratio = r.get("time_ratio", seconds / ours["seconds"]["p50"])
        ratios = f"{time_ratio:.2f} x | {peak / ours['peak_bytes']:.1f} x"
        lines.append(f"| {r['provider']} | {seconds:.2f} | {peak / 2**20:.0f} MiB | {ratios} |")
    return lines


def integrated_gradients() -> list[str]:
    """ResNet-50."""
    return _providers("integrated_gradients", "image")


def text() -> list[str]:
    """BERT."""
    return _providers("text", "text")


def memory() -> list[str]:
    """Large images: peaks, and igfast's over those of the others."""
    records = [r for r in harness.read("memory") if r["side"] == 1024]
    providers = ("igfast", "captum, internal_batch_size=1", "inference", "inference, mmap threshold 128 KiB")
    lines = [f"| network | {' | '.join(providers)} | captum / igfast | igfast / inference |", "|---|" + "---|" * 6]
    for network in dict.fromkeys(r["network"] for r in records):
        peaks = {r["provider"]: r["peak_bytes"] for r in records if r["network"] == network}
        ours, captums, *inference = (peaks[provider] for provider in providers)
        mib = " | ".join(f"{peaks[provider] / 2**20:.0f} MiB" for provider in providers)
        ratios = ", ".join(f"{ours / peak:.1f} x" for peak in inference)
        lines.append(f"| {network} | {mib} | {captums / ours:.1f} x | {ratios} |")
    return lines


def large_image() -> list[str]:
    """The README's table: peak memory and time of igfast, Captum at its smallest chunk, and inference."""
    records = [r for r in harness.read("memory") if r["side"] == 1024]
    providers = ("igfast", "captum, internal_batch_size=1", "inference")
    lines = [f"| network | {' | '.join(providers)} | memory, captum / igfast |", "|---|---|---|---|---|"]
    for network in dict.fromkeys(r["network"] for r in records):
        of = {r["provider"]: r for r in records if r["network"] == network}
        costs = " | ".join(f"{of[p]['peak_bytes'] / 2**20:.0f} MiB, {of[p]['seconds']:.0f} s" for p in providers)
        lines.append(f"| {network} | {costs} | {of[providers[1]]['peak_bytes'] / of['igfast']['peak_bytes']:.1f} x |")
    return lines


def within_budget() -> list[str]:
    """ResNet-50 on images that do not fit otherwise."""
    lines = ["| image | call | peak memory |", "|---|---|---|"]
    for r in harness.read("memory"):
        if r["side"] > 1024:
            lines.append(f"| {r['side']}x{r['side']} | {r['provider']} | {r['peak_bytes'] / 2**20:.0f} MiB |")
    return lines


def _beside_captum(name: str, unit: str, per_second: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Igfast's record of each network, and its line: times of igfast, Captum and Captum's best size, and ratios."""
    records = [r for r in harness.read(name) if not r["case"].endswith(BUSY)]
    for network in dict.fromkeys(r["network"] for r in records):
        ours, captums, *tuned = (r for r in records if r["network"] == network)
        best = min(tuned, key=lambda r: float(r["time_ratio"]))
        times = " | ".join(f"{per_second * r['seconds']['p50']:.1f} {unit}" for r in (ours, captums, best))
        ratios = " | ".join(f"{r['time_ratio']:.2f} x" for r in (captums, best))
        size = best["provider"].rpartition("=")[2]
        yield ours, f"| {network} | {times} ({size}) | {ratios} |"


def networks() -> list[str]:
    """Seconds of each provider, and lean execution's share in time."""
    lines = [
        "| network | igfast | captum | captum, best size | captum / igfast | best / igfast | lean on / off |",
        "|---|---|---|---|---|---|---|",
    ]
    return lines + [f"{line} {ours['lean_ratio']:.2f} |" for ours, line in _beside_captum("networks", "s", 1)]


def small() -> list[str]:
    """Milliseconds of each provider on small models."""
    lines = [
        "| model | igfast | captum | captum, best size | captum / igfast | best / igfast |",
        "|---|---|---|---|---|---|",
    ]
    return lines + [line for _, line in _beside_captum("small", "ms", 1000)]


def busy() -> list[str]:
    """Captum's times over igfast's, on a quiet machine and while another process keeps one core busy."""
    lines = ["| call | captum / igfast, quiet | busy | best / igfast, quiet | busy |", "|---|---|---|---|---|"]
    for name in ("networks", "small"):
        records = harness.read(name)
        for network in dict.fromkeys(r["network"] for r in records if r["case"].endswith(BUSY)):
            of = [r for r in records if r["network"] == network]
            ratios = []
            for is_busy in (False, True):
                _, captums, *tuned = (r["time_ratio"] for r in of if r["case"].endswith(BUSY) is is_busy)
                ratios.append((captums, min(tuned)))
            columns = " | ".join(f"{ratio:.2f} x" for pair in zip(*ratios, strict=True) for ratio in pair)
            lines.append(f"| {network} | {columns} |")
    return lines


def tolerance() -> list[str]:
    """How the tolerance was met, and at what cost."""
    return bench_tolerance.summary(harness.read("tolerance"))


def many_targets() -> list[str]:
    """One call for several targets, and a call for each."""
    records = [r for r in harness.read("many") if "peak_bytes" not in r]
    lines = ["| network | one call | a call for each | a call for each / one call |", "|---|---|---|---|"]
    for case in dict.fromkeys(r["case"] for r in records):
        once, each = (r for r in records if r["case"] == case)
        times = " | ".join(f"{r['seconds']['p50']:.1f} s" for r in (once, each))
        lines.append(f"| {case.split(', 50 steps')[0]} | {times} | {each['time_ratio']:.2f} x |")
    return lines


def gradient_shap() -> list[str]:
    """Many baselines: time and memory of igfast and Captum."""
    records = [r for r in harness.read("many") if "peak_bytes" in r]
    case = records[0]["case"].split(", ", 1)[1].removesuffix(", float32")
    lines = [f"| {case} | igfast | captum | time and memory, captum / igfast | difference |", "|---|---|---|---|---|"]
    for ours, theirs in zip(records[::2], records[1::2], strict=True):
        each = (f"{r['seconds']['p50']:.1f} s, {r['peak_bytes'] / 2**20:.0f} MiB" for r in (ours, theirs))
        ratios = f"{theirs['time_ratio']:.1f} x, {theirs['peak_bytes'] / ours['peak_bytes']:.1f} x"
        difference = f"{theirs['difference']:.0e}"
        lines.append(f"| `{ours['case'].split(',')[0]}` | {' | '.join(each)} | {ratios} | {difference} |")
    return lines


def llm() -> list[str]:
    """Language models: times, of igfast's for the whole answer, and differences from Captum."""
    lines = [
        "| answer | provider | seconds | time / fastest | largest difference from Captum |",
        "|---|---|---|---|---|",
    ]
    for r in harness.read("llm"):
        if "difference_from_captum" in r:
            apart = f"{r['difference_from_captum']:.0e}" if r["difference_from_captum"] else ""
            seconds = f"{r['seconds']['p50']:.1f}"
            lines.append(
                f"| {r['n_tokens']} tokens | {r['provider']} | {seconds} | {r['time_ratio']:.1f} x | {apart} |"
            )
    return lines


def llm_memory() -> list[str]:
    """Language models: peak memory for a long prompt."""
    records = [r for r in harness.read("llm") if "peak_bytes" in r]
    lines = [f"| {records[0]['case'].split(', float32')[0]} | peak memory | time / igfast's |", "|---|---|---|"]
    for r in records:
        time = f"{r['time_ratio']:.2f} x" if "time_ratio" in r else ""
        lines.append(f"| {r['provider']} | {r['peak_bytes'] / 2**20:.0f} MiB | {time} |")
    return lines


def ablation() -> list[str]:
    """The time of a call without each mechanism over that of a call with everything."""
    records = harness.read("ablation")
    networks = list(dict.fromkeys(r["network"] for r in records))
    lines = [f"| without | {' | '.join(networks)} |", "|---|" + "---|" * len(networks)]
    for title in dict.fromkeys(r["without"] for r in records if r["without"] != "everything"):
        ratios = {r["network"]: f"{r['time_ratio']:.2f} x" for r in records if r["without"] == title}
        lines.append(f"| {title} | {' | '.join(ratios.get(network, '-') for network in networks)} |")
    return lines


def gpu() -> list[str]:
    """On an H200: igfast, Captum without options, Captum's best call and, where there is one, compiled; and memory."""
    records = [r for r in harness.read("NVIDIA-H200") if "provider" in r and not r.get("choice")]
    lines = [
        "| call | igfast | captum | best / igfast | compiled / igfast | memory: igfast, captum, compiled |",
        "|---|---|---|---|---|---|",
    ]
    for case in dict.fromkeys(r["case"] for r in records):
        of_case = {r["provider"]: r for r in records if r["case"] == case}
        if "igfast" not in of_case or "captum" not in of_case:
            continue
        compiled = next((r for name, r in of_case.items() if "compiled" in name), None)
        eager = [r for name, r in of_case.items() if name.startswith("captum") and r is not compiled]
        best = min(float(r["time_ratio"]) for r in eager)
        times = " | ".join(f"{1e3 * of_case[name]['seconds']['p50']:.1f} ms" for name in ("igfast", "captum"))
        shown = [of_case["igfast"], of_case["captum"], *([compiled] if compiled else [])]
        memory = ", ".join(f"{r['peak_bytes'] / 2**20:.1f} MiB" for r in shown)
        to_compiled = f"{compiled['time_ratio']:.2f} x" if compiled else "-"
        lines.append(f"| {case} | {times} | {best:.2f} x | {to_compiled} | {memory} |")
    return lines


def gpu_operators() -> list[str]:
    """Each operator's bandwidth over that of a copy of as many bytes, on an H200."""
    records = [r for r in harness.read("NVIDIA-H200") if "operator" in r]
    lines = ["| operator | float32 | float16 |", "|---|---|---|"]
    for name in dict.fromkeys(r["operator"] for r in records):
        shares = {r["dtype"]: r["bandwidth_share"] for r in records if r["operator"] == name}
        lines.append(f"| {name} | {shares['float32']:.2f} | {shares['float16']:.2f} |")
    return lines


def demo() -> list[str]:
    """The demo's four measurements."""
    lines = ["| image | call | seconds | peak memory | convergence delta |", "|---|---|---|---|---|"]
    for r in harness.read("demo"):
        size = r["internal_batch_size"]
        call = r["library"] + ("" if size is None else f", internal_batch_size={size}")
        peak = f"{r['peak_bytes'] / 2**20:.0f} MiB"
        lines.append(f"| {r['side']}x{r['side']} | {call} | {r['seconds']:.1f} | {peak} | {r['delta']:.1e} |")
    return lines


def operators() -> list[str]:
    """Each operator's time over that of a copy of the same bytes."""
    records = harness.read("ops")
    dtypes = list(dict.fromkeys(r["dtype"] for r in records))
    lines = [f"| operator | rows | {' | '.join(dtypes)} |", f"|---|---|{'---|' * len(dtypes)}"]
    for name, megabytes in dict.fromkeys((r["operator"], r["megabytes"]) for r in records):
        ratios = [r["ratio"] for r in records if (r["operator"], r["megabytes"]) == (name, megabytes)]
        lines.append(f"| `{name}` | {megabytes} MB | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    return lines


def architectures() -> list[str]:
    """The architectures of transformers that were compared with Captum."""
    lines = [
        "| architectures | compared in float64 | largest difference | in float32 | largest difference | not equal |",
        "|---|---|---|---|---|---|",
    ]
    for r in harness.read("architectures"):
        parts = [f"{r['compared'][dtype]} | {r['worst'][dtype]:.0e}" for dtype in ("float64", "float32")]
        lines.append(f"| {r['architectures']} {r['case']} | {' | '.join(parts)} | {len(r['different'])} |")
    return lines


def tested() -> list[str]:
    """The releases of Python and torch that the tests ran on."""
    lines = ["| Python | torch | tests passed | failed |", "|---|---|---|---|"]
    for r in sorted(harness.read("tested"), key=lambda r: [int(part) for part in r["torch"].split(".")]):
        counts = r["tests"]
        lines.append(f"| {r['python']} | {r['torch']} | {counts['passed']} | {counts.get('failed', 0)} |")
    return lines


ROOT = harness.RESULTS.parent.parent
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *(DOCS / n for n in ("benchmarks.md", "contributing.md", "guides/language-models.md")))
TABLES = {
    table.__name__: table
    for table in (
        large_image,
        demo,
        memory,
        within_budget,
        integrated_gradients,
        networks,
        small,
        busy,
        text,
        operators,
        tolerance,
        many_targets,
        gradient_shap,
        llm,
        llm_memory,
        ablation,
        gpu,
        gpu_operators,
        architectures,
        tested,
    )
}
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n)(?:\|.*\n)+")


def rendered(page: str) -> str:
    """Returns a page with the table after each marker `<!-- table: name -->` rendered from the records."""
    return _TABLE.sub(lambda found: found[1] + "".join(f"{line}\n" for line in TABLES[found[2]]()), page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(rendered(path.read_text()))
