"""What `rrtf-bench cost` says of two sides: what each took, what it gained, and gain per device-minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.passk import compare_runs

GENERATION = (
    "GRPO's answers come from transformers' generate; TRL's vLLM, which needs CUDA, is not measured. RRTF's "
    "come from the engines that its run file names."
)
MEMORY = (
    "Peak memory is the resident high-water mark of the side's own process, without the sandbox's cells; on "
    "CUDA also what torch reserved at most, without CTranslate2's."
)


def cost_report(
    sides: dict[str, dict[str, Any]], scores: dict[str, dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """sides: reports of the children; scores: of `passk`, with "base"; folder: of those scores.

    Gains are points of pass@1 (0 to 100) on the development problems, base subtracted, with the interval of
    the paired difference. A device-minute is a minute of wall time of the one device that a side has.
    """
    report: dict[str, Any] = {
        "base": _score(scores["base"]),
        "sides": {side: _side(found, scores[side], folder, side) for side, found in sides.items()},
    }
    if len(sides) == 2:
        found = compare_runs(folder / "grpo", folder / "rrtf")
        report["rrtf_against_grpo"] = {
            key: found[key] for key in ("difference", "interval", "p_value", "test", "only_a", "only_b")
        }
        walls = {side: each["process"]["wall_s"] for side, each in sides.items()}
        report["grpo_to_rrtf"] = {
            "wall": walls["grpo"] / walls["rrtf"],
            "peak_memory": sides["grpo"]["process"]["peak_mb"] / sides["rrtf"]["process"]["peak_mb"],
            "tokens_sampled": _ratio(_tokens(sides["grpo"]), _tokens(sides["rrtf"])),
            "tests_executed": _ratio(sides["grpo"]["tests_executed"], sides["rrtf"]["tests_executed"]),
        }
    return report


def _side(found: dict[str, Any], score: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    minutes = found["process"]["wall_s"] / 60
    gain = compare_runs(folder / "base", folder / name)
    points = {
        "mean": 100 * gain["difference"],
        "low": 100 * gain["interval"]["low"],
        "high": 100 * gain["interval"]["high"],
    }
    return {
        **{key: value for key, value in found.items() if key != "process"},
        **found["process"],
        "device_minutes": minutes,
        "pass@1": _score(score),
        "gain_points": points,
        "p_value": gain["p_value"],
        "gain_points_per_device_minute": {key: value / minutes for key, value in points.items()},
    }


def _score(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = report["scores"]["pass@1"]
    return {key: found[key] for key in ("value", "passed", "problems", "interval") if key in found}


def _tokens(found: dict[str, Any]) -> int:
    return sum(found["tokens_sampled"].values())


def _ratio(first: int, second: int) -> float | None:
    return first / second if second else None


_ROWS = (
    ("wall time, s", lambda side: f"{side['wall_s']:.1f}"),
    ("of which", lambda side: ", ".join(f"{name} {value:.1f}" for name, value in side["phases_s"].items())),
    ("peak resident MB", lambda side: f"{side['peak_mb']:.0f} ({side['base_mb']:.0f} before the model)"),
    ("peak CUDA MB", lambda side: "-" if side["cuda_peak_mb"] is None else f"{side['cuda_peak_mb']:.0f}"),
    ("device", lambda side: side["device"]),
    ("training steps", lambda side: str(side["steps"])),
    ("answers sampled", lambda side: _roles(side["answers"])),
    ("tokens sampled", lambda side: _roles(side["tokens_sampled"])),
    ("programmes run", lambda side: str(side["programmes_run"])),
    ("tests executed", lambda side: str(side["tests_executed"])),
    ("answers that the sandbox failed", lambda side: str(side["failed_by_the_sandbox"])),
    ("development pass@1", lambda side: _shown(side["pass@1"])),
    ("gain, points", lambda side: _span(side["gain_points"])),
    ("p", lambda side: f"{side['p_value']:.3g}"),
    ("gain per device-minute, points", lambda side: _span(side["gain_points_per_device_minute"])),
)


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    sides = report["sides"]
    lines = [
        f"# What alignment costs: RRTF and GRPO on {report['student']}",
        "",
        f"{report['problems']} problems; budget: {report['budget']}; development problems: "
        f"{report['development']}, greedy; base {_shown(report['base'])}.",
        "",
        f"| | {' | '.join(side.upper() for side in sides)} |",
        f"|---{'|---' * len(sides)}|",
    ]
    for name, shown in _ROWS:
        lines.append(f"| {name} | {' | '.join(shown(side) for side in sides.values())} |")
    if against := report.get("rrtf_against_grpo"):
        span = against["interval"]
        lines += [
            "",
            f"RRTF against GRPO: {100 * against['difference']:+.1f} points ({100 * span['low']:+.1f} to "
            f"{100 * span['high']:+.1f}), p = {against['p_value']:.3g}, {against['test']}.",
        ]
    grpo = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report["grpo"].items())
    versions = next(reversed(sides.values()))["versions"]
    machine = ", ".join(
        f"{name} {value}" for name, value in {**report["machine"], **versions}.items() if value
    )
    return "\n".join(
        [*lines, "", f"GRPO: {grpo}.", "", GENERATION, "", MEMORY, "", f"Machine: {machine}", ""]
    )


def _roles(counts: dict[str, int]) -> str:
    return ", ".join(f"{role} {count}" for role, count in counts.items() if count) or "0"


def _shown(score: dict[str, Any]) -> str:
    passed = f" ({score['passed']} of {score['problems']})" if "passed" in score else ""
    return f"{score['value']:.1%}{passed}"


def _span(points: dict[str, float]) -> str:
    return f"{points['mean']:+.2f} ({points['low']:+.2f} to {points['high']:+.2f})"
