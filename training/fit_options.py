"""What `rrtf-train fit` can be told. Imports no torch, so that --help is quick and needs none."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

METHODS = ("rrtf", "sft", "rank", "rrhf", "dpo")
FT_REDUCTIONS = ("sum", "mean")
LAYOUTS = ("shared", "separate")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
TUNINGS = ("full", "lora", "qlora")
# A model may be chosen by these and by files of the user's own; test sets are for reports alone.
CHOOSING = ("mbpp-stubs-validation", "mbpp-validation", "leetcode-dev")
PRECISIONS = ("bf16", "fp32")


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class LossOptions:
    """Raises ValueError naming the flag."""

    ft_reduction: str = "sum"  # over the chosen answer's tokens; the paper prints the sum
    ft_weight: float = 1.0  # 0: the rank loss alone
    rank_weight: float = 1.0
    margin: float = 0.0  # by which p_tea must exceed p_stu, in nats per token

    def __post_init__(self) -> None:
        if self.ft_reduction not in FT_REDUCTIONS:
            raise ValueError(f"--ft-reduction {self.ft_reduction}: must be one of {', '.join(FT_REDUCTIONS)}")
        for name in ("ft_weight", "rank_weight", "margin"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):  # written so that NaN fails it
                raise ValueError(f"--{name.replace('_', '-')} must be 0 or more, not {value}")


@dataclass(frozen=True)
class AdapterOptions:
    """Raises ValueError naming the flag."""

    rank: int = 16
    alpha: int = 32

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"--lora-rank must be at least 1, not {self.rank}")
        if self.alpha < 1:
            raise ValueError(f"--lora-alpha must be at least 1, not {self.alpha}")


@dataclass(frozen=True)
class FitOptions:
    """Everything `rrtf-train fit` can be told. Raises ValueError naming the flag."""

    tuples: Path
    model: str  # what the student is: a name, a hub repository, a file or a folder
    output: Path
    method: str = "rrtf"
    lr: float | None = None  # None: 2e-6, of adapters 1e-4
    epochs: int = 3  # the paper: 6, best after 3
    batch: int = 16  # tuples at a step; the paper: 512
    seed: int = 0
    warmup: float = 0.03  # share of the steps
    weight_decay: float = 0.0
    clip: float = 1.0  # norm of the gradient
    ft_reduction: str = "sum"
    rank_weight: float = 1.0
    margin: float = 0.0
    beta: float = 0.1  # DPO's
    max_tokens: int = 2048  # of a prompt with its longest answer
    micro_tokens: int = 2048  # of a forward pass, padding included
    layout: str | None = None  # None: shared, with flash_attention_2 separate
    attention: str = "sdpa"
    precision: str = "bf16"
    gradient_checkpointing: bool = False
    compile: bool = False
    tune: str = "full"
    lora_rank: int = 16
    lora_alpha: int = 32
    device: str = "auto"
    threads: int = 0  # 0: torch's own choice
    checkpoint_every: int = 100  # steps; 0: only when the run is stopped
    keep: int = 1  # checkpoints
    validate: str | None = None  # a suite to choose the best step by, or a file of problems; None: no choice
    validate_every: int = 0  # steps; 0: at the end of each epoch
    validate_tokens: int = 512  # of an answer

    def __post_init__(self) -> None:
        choices = {
            "method": METHODS, "layout": (None, *LAYOUTS), "attention": ATTENTIONS, "precision": PRECISIONS,
            "tune": TUNINGS, "device": ("auto", "cpu", "cuda"),
        }  # fmt: skip
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                listed = ", ".join(each for each in known if each is not None)
                raise ValueError(f"{flag(name)} {value}: must be one of {listed}")
        least = {
            "epochs": 1, "batch": 1, "max_tokens": 2, "micro_tokens": 2, "threads": 0, "checkpoint_every": 0,
            "keep": 1, "validate_every": 0, "validate_tokens": 1,
        }  # fmt: skip
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{flag(name)} must be at least {low}, not {getattr(self, name)}")
        # Written so that NaN fails them.
        if self.lr is not None and not 0 < self.lr < 1:
            raise ValueError(f"--lr must be above 0 and below 1, not {self.lr}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"--warmup must be from 0 to below 1, not {self.warmup}")
        if not 0 <= self.weight_decay < 1:
            raise ValueError(f"--weight-decay must be from 0 to below 1, not {self.weight_decay}")
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"--beta must be above 0, not {self.beta}")
        if not self.clip > 0:
            raise ValueError(f"--clip must be above 0, not {self.clip}")
        if self.attention == "flash_attention_2" and self.layout == "shared":
            raise ValueError("--layout shared: FlashAttention takes no mask of ours; use --layout separate")
        if self.validate is not None and self.validate not in CHOOSING and not Path(self.validate).is_file():
            raise ValueError(
                f"--validate {self.validate}: must be a file of problems or one of {', '.join(CHOOSING)}; a "
                "model chosen by a test set would be reported too well"
            )
        if self.validate is not None and self.tune == "qlora":
            raise ValueError(
                "--validate: an adapter on a 4-bit base can't be run here; leave one of the two out"
            )
        self.adapter()
        self.loss()

    @property
    def learning_rate(self) -> float:
        if self.lr is not None:
            return self.lr
        return 2e-6 if self.tune == "full" else 1e-4

    @property
    def row_layout(self) -> str:
        return self.layout or ("separate" if self.attention == "flash_attention_2" else "shared")

    def loss(self) -> LossOptions:
        """The method's: SFT is L_ft alone, `rank` is L_rank alone."""
        return LossOptions(
            ft_reduction=self.ft_reduction,
            ft_weight=0.0 if self.method == "rank" else 1.0,
            rank_weight=0.0 if self.method == "sft" else self.rank_weight,
            margin=self.margin,
        )

    def without_effect(self) -> list[str]:
        """Flags that were given another value than their default, and that this run never reads."""
        read = {"ft_reduction": ("rrtf", "sft", "rrhf"), "rank_weight": ("rrtf", "rank", "rrhf"),
                "margin": ("rrtf", "rank", "rrhf"), "beta": ("dpo",)}  # fmt: skip
        idle = {name for name, methods in read.items() if self.method not in methods}
        if self.tune == "full":
            idle |= {"lora_rank", "lora_alpha"}
        if self.validate is None:
            idle |= {"validate_every", "validate_tokens"}
        return [
            flag(each.name)
            for each in fields(self)
            if each.name in idle and getattr(self, each.name) != each.default
        ]

    def adapter(self) -> AdapterOptions:
        return AdapterOptions(self.lora_rank, self.lora_alpha)
