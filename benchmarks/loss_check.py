"""`rrtf-bench loss-check`: does the loss learn an order that is known, and only where there is one?

Tuples are made by a rule: the prompt names two letters, an answer is a row of those two, and the better of
two answers has more of the first. Every four rows come under two prompts, one letter first and then the
other, which want the opposite: a model that does not look at the prompt orders half of the pairs rightly. For
a share of `noise` of those couples the scores are dealt out at random, the same under both prompts: at 0 the
labels are true, at 1 they say nothing.

Each run trains on such tuples and is asked to order tuples that it has not seen, by the true rule: the mean
log-probability of the better answer must be above that of the worse. Expected: from chance to near 1 at noise
0, chance at noise 1.

OUTPUT/tuples-NOISE-sSEED.jsonl, OUTPUT/held-out.jsonl   the tuples
OUTPUT/runs/NAME.json                                    a finished run; a stopped check does what is missing
OUTPUT/loss-check.json, OUTPUT/loss-check.md             the report
"""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from benchmarks.cost_settings import keep_settings, read_json
from benchmarks.machine import machine_record
from rrtf_serve.models.errors import ModelError
from rrtf_serve.problems.estimator import bounded_interval
from rrtf_serve.problems.prompts import Prompt
from training.fit import fit, prepare
from training.fit_options import FitOptions
from training.records import Candidate, Pair, Tuple, write_tuples
from training.sample import write_json

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHARES = (1.0, 2 / 3, 1 / 3, 0.0)  # of the first letter, one candidate each; at once their scores
METHODS = ("rrtf", "rank", "sft")
TINY = "tiny"  # --model: random weights, made here
_CHUNK = 64  # tuples scored at a time

Say = Callable[[str], None]


@dataclass(frozen=True)
class LossCheckConfig:
    """What is trained and how. Raises ValueError naming the flag."""

    model: str = TINY
    output: Path = Path("rrtf-loss-check")
    methods: tuple[str, ...] = METHODS
    noises: tuple[float, ...] = (0.0, 0.5, 1.0)
    seeds: int = 3
    tuples: int = 256
    held_out: int = 256
    epochs: int = 8
    batch: int = 8
    lr: float = 3e-3
    length: int = 12  # letters of an answer
    precision: str = "fp32"
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"--methods {method}: must be one of {', '.join(METHODS)}")
        for noise in self.noises:
            if not 0 <= noise <= 1:
                raise ValueError(f"--noise {noise}: must be from 0 (true labels) to 1 (none)")
        least = {"seeds": 1, "tuples": 2, "held_out": 2, "length": 3}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least {low}, not {getattr(self, name)}"
                )
        if not self.methods or not self.noises:
            raise ValueError("--methods and --noise: at least one each")
        self.fit_options("rrtf", 0.0, 0)

    def fit_options(self, method: str, noise: float, seed: int) -> FitOptions:
        """Raises ValueError naming the flag."""
        name = label(method, noise, seed)
        return FitOptions(
            tuples=self.output / f"tuples-{noise:g}-s{seed}.jsonl",
            model=str(self.output / TINY) if self.model == TINY else self.model,
            output=self.output / "fits" / name,
            method=method,
            lr=self.lr,
            epochs=self.epochs,
            batch=self.batch,
            seed=seed,
            ft_reduction="mean",  # both parts of the loss at one scale
            precision=self.precision,
            device=self.device,
            threads=self.threads,
            checkpoint_every=0,
        )

    def runs(self) -> list[tuple[str, float, int]]:
        return [(m, n, s) for m in self.methods for n in self.noises for s in range(self.seeds)]


def label(method: str, noise: float, seed: int) -> str:
    return f"{method}-noise{noise:g}-s{seed}"


def loss_check(config: LossCheckConfig, say: Say = lambda _: None) -> dict[str, Any]:
    """Train what is missing and report the table. Raises ValueError, ModelError."""
    output = config.output
    if importlib.util.find_spec("torch") is None:
        raise ModelError("training needs torch: install it for your machine, then 'rrtf-serve[train]'")
    output.mkdir(parents=True, exist_ok=True)
    kept = {
        name: value
        for name, value in asdict(config).items()
        if name not in ("output", "threads", "device", "methods", "noises", "seeds")
    }
    keep_settings(output / "settings.json", kept)
    if config.model == TINY and not (output / TINY / "config.json").is_file():
        write_tiny(output / TINY)
    write_tuples(output / "held-out.jsonl", make_tuples(config.held_out, 0.0, config.length, "held-out"))
    before = read_json(output / "runs" / "untrained.json")
    if before is None:
        before = _measured(config, config.fit_options("rrtf", 0.0, 0).model)
        write_json(output / "runs" / "untrained.json", before)
    missing = [run for run in config.runs() if not _place(config, run).is_file()]
    say(
        f"{len(config.runs())} runs of {config.tuples} tuples, {len(missing)} to do; "
        f"untrained: {before['accuracy']:.3f}"
    )
    for run in tqdm(missing, desc="loss-check", unit="run"):
        _train(config, run)
    report = {
        "model": config.model,
        **{name: kept[name] for name in ("tuples", "held_out", "epochs", "batch", "lr")},
        "untrained": before,
        "runs": {label(*run): read_json(_place(config, run)) for run in config.runs()},
        "table": table(config),
        "machine": machine_record(),
    }
    write_json(output / "loss-check.json", report)
    (output / "loss-check.md").write_text(markdown(report), "utf-8")
    return report


def _place(config: LossCheckConfig, run: tuple[str, float, int]) -> Path:
    return config.output / "runs" / f"{label(*run)}.json"


def _train(config: LossCheckConfig, run: tuple[str, float, int]) -> None:
    method, noise, seed = run
    options = config.fit_options(method, noise, seed)
    write_tuples(options.tuples, make_tuples(config.tuples, noise, config.length, f"train/{seed}"))
    report = fit(options)
    found = _measured(config, str(options.output / "last")) | {"steps": report["steps"]}
    write_json(_place(config, run), found)
    shutil.rmtree(options.output)


def make_tuples(count: int, noise: float, length: int, seed: str) -> list[Tuple]:
    """`count` tuples, each second one with the same answers as the one before it under the opposite prompt.

    noise: the share of such couples whose scores are dealt out at random, the same under both prompts.
    """
    chance, mischance = random.Random(f"{seed}/answers"), random.Random(f"{seed}/noise")
    found: list[Tuple] = []
    while len(found) < count:
        first, second = chance.sample(LETTERS, 2)
        rows = [_row(chance, first, second, round(share * length), length) for share in SHARES]
        dealt = mischance.sample(SHARES, len(SHARES)) if mischance.random() < noise else None
        for asked, scores in ((first + second, SHARES), (second + first, SHARES[::-1])):
            found.append(_tuple(f"made/{len(found)}", f"{asked}: ", rows, list(dealt or scores)))
    return found[:count]


def _row(chance: random.Random, first: str, second: str, count: int, length: int) -> str:
    letters = [first] * count + [second] * (length - count)
    chance.shuffle(letters)
    return " ".join(letters)


def _tuple(task_id: str, asked: str, rows: list[str], scores: list[float]) -> Tuple:
    best = scores.index(max(scores))
    candidates = tuple(
        Candidate(
            "rule", "teacher" if at == best else "student", row, "ALL_PASS" if at == best else "PARTIAL",
            round(3 * score), 3, score,
        )
        for at, (row, score) in enumerate(zip(rows, scores, strict=True))
    )  # fmt: skip
    places = range(len(scores))
    pairs = tuple(Pair(i, j, scores[i] - scores[j]) for i in places for j in places if scores[i] > scores[j])
    prompt = Prompt("completion", text=asked)
    return Tuple(task_id, "made", prompt, candidates, pairs, best)


def _measured(config: LossCheckConfig, model: str) -> dict[str, Any]:
    accuracies = ordering_accuracy(
        FitOptions(
            tuples=config.output / "held-out.jsonl", model=model, output=config.output, method="rank",
            precision=config.precision, device=config.device, threads=config.threads,
        )
    )  # fmt: skip
    # A tuple and its opposite share their answers: they are one draw.
    draws = [fmean(accuracies[at : at + 2]) for at in range(0, len(accuracies), 2)]
    return {"accuracy": fmean(accuracies), "interval": asdict(bounded_interval(draws, 0.0, 1.0))}


def ordering_accuracy(options: FitOptions) -> list[float]:
    """Of each tuple: the share of its pairs that `options.model` orders as they are labelled.

    Raises ValueError, ModelError as `training.fit.prepare` does.
    """
    # Slow to import, and not in the base install.
    import torch  # noqa: PLC0415

    from training.packing import pack  # noqa: PLC0415
    from training.scorer import Scorer, score_rows  # noqa: PLC0415
    from training.student import load_model  # noqa: PLC0415

    if options.threads:
        torch.set_num_threads(options.threads)
    work = prepare(options)
    cuda = options.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    model = load_model(work.student, "full", options.adapter(), attention=options.attention, half=None)
    scorer = Scorer(model.to(device), options.row_layout).eval()
    found: list[float] = []
    with torch.no_grad():
        for start in range(0, len(work.items), _CHUNK):
            rows = pack(work.items[start : start + _CHUNK], options.row_layout).to(device)
            p = score_rows(scorer, rows) / rows.lengths
            right = (p[rows.teacher] > p[rows.student]).double()
            count = len(rows.chosen)
            sums = right.new_zeros(count).index_add(0, rows.pair_owner, right)
            pairs = right.new_zeros(count).index_add(0, rows.pair_owner, torch.ones_like(right))
            found += (sums / pairs).tolist()
    return found


def table(config: LossCheckConfig) -> dict[str, dict[str, Any]]:
    """By method and noise: the accuracies of the finished seeds."""
    found: dict[str, dict[str, Any]] = {}
    for method in config.methods:
        for noise in config.noises:
            runs = (read_json(_place(config, (method, noise, seed))) for seed in range(config.seeds))
            values = [run["accuracy"] for run in runs if run is not None]
            if values:
                cell = {"mean": fmean(values), "min": min(values), "max": max(values), "n": len(values)}
                found.setdefault(method, {})[f"{noise:g}"] = cell
    return found


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    untrained = report["untrained"]
    span = untrained["interval"]
    noises = list(next(iter(report["table"].values())))
    lines = [
        "# The loss on labels that are known",
        "",
        f"Model {report['model']}, {report['tuples']} tuples, {report['epochs']} epochs of batch "
        f"{report['batch']} at lr {report['lr']:g}. Share of held-out pairs ordered by the true rule; "
        f"untrained {untrained['accuracy']:.3f} ({span['low']:.3f} to {span['high']:.3f}).",
        "",
        f"| method | {' | '.join(f'noise {noise}' for noise in noises)} |",
        f"|---{'|---' * len(noises)}|",
    ]
    for method, cells in report["table"].items():
        shown = [f"{cell['mean']:.3f} ({cell['min']:.3f} to {cell['max']:.3f})" for cell in cells.values()]
        lines.append(f"| {method} | {' | '.join(shown)} |")
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items() if value)
    return "\n".join(
        [*lines, "", "Noise 0: true labels; noise 1: labels that say nothing. In brackets: the range over "
         "seeds.", "", f"Machine: {machine}", ""]
    )  # fmt: skip


def write_tiny(folder: Path) -> None:
    """A random model of 40,000 weights over single characters: a Hugging Face folder that can be trained."""
    # Slow to import, and not in the base install.
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415

    tokens = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens[:3])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config: Any = transformers.LlamaConfig(
            vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024,
            tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
        )  # fmt: skip
        causal: Any = transformers.AutoModelForCausalLM
        causal.from_config(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "chat_template": "{{ messages[0].content }}\n",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
