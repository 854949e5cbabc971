"""Online RL's side of `rrtf-bench cost`, in a child: TRL's GRPOTrainer (arXiv 2402.03300) with our sandbox.

The student, its loading, its prompts, the problems and their tests, precision, clipping and weight decay are
those of RRTF's side. Answers come from transformers' `generate`, which is what TRL uses without vLLM; vLLM
needs CUDA and is not measured here.

Settings: file, set, folder (what `read_config` takes), seconds and steps (one of them None), grpo (fields of
cost.GrpoOptions).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]  # ships no type information
import torch
import transformers
import trl
from tqdm import tqdm

from benchmarks.cost_reward import SandboxReward
from rrtf_serve.models.errors import ModelError
from rrtf_serve.problems import gold
from rrtf_serve.problems.problem import Problem
from rrtf_serve.problems.prompts import Prompt, render
from training.config import RunConfig, read_config
from training.encoding import Encoder
from training.fit import Student, find_student
from training.student import load_model, write_student

NO_END = 10**6  # steps, where the clock is the limit


def align(settings: dict[str, Any]) -> dict[str, Any]:
    """Train; what it took. Raises ValueError, ModelError, SandboxUnavailable."""
    began = time.monotonic()
    folder = Path(settings["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    config = read_config(Path(settings["file"]), settings["set"], folder)
    options = config.fit
    assert options is not None  # the parent has refused a file without [fit]
    if options.threads:
        torch.set_num_threads(options.threads)
    suite = config.sample.load().suite
    student = find_student(options.model)
    with config.judge.open() as sandbox:
        golds = gold.measure(suite, sandbox)
        solvable = [each for task, each in suite.problems.items() if task not in golds or golds[task].passed]
        prompts, too_long = _prompts(student, solvable, config, settings["grpo"]["max_tokens"])
        tokenizer = _tokenizer(student, prompts)
        reward = SandboxReward(
            suite.problems, prompts, golds, sandbox, config.rank, retries=config.judge.retries
        )
        model = load_model(student, "full", options.adapter(), attention=options.attention, half=None)
        generation = _Timed(model.generate)
        model.generate = generation  # the trainer calls it on this very object
        loaded = time.monotonic()
        trainer = _trainer(
            settings, config, model=model, tokenizer=tokenizer, reward=reward, prompts=prompts, began=began
        )
        trainer.train()
        trained = time.monotonic()
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    del model.generate
    write_student(student, model, state, folder / "model", made={"method": "grpo", "trl": trl.__version__})
    history = [line for line in trainer.state.log_history if "reward" in line]
    with (folder / "log.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in history)
    if not history:
        raise ModelError("GRPO's trainer logged no step; its messages are above")
    kept = ("reward", "frac_reward_zero_std", "completions/mean_length", "completions/clipped_ratio")
    return {
        "phases_s": {
            "load": round(loaded - began, 3),
            "generate": round(generation.seconds, 3),
            "judge": round(reward.seconds, 3),
            "update": round(trained - loaded - generation.seconds - reward.seconds, 3),
        },
        "steps": trainer.state.global_step,
        "too_long": too_long,
        "device": str(trainer.accelerator.device),
        "first_step": {name: history[0].get(name) for name in kept},
        "last_step": {name: history[-1].get(name) for name in kept},
        "answers": {"student": reward.answers, "teacher": 0},
        "tokens_sampled": {"student": reward.tokens, "teacher": 0},
        "passed": reward.passed,
        "programmes_run": reward.programmes,
        "tests_executed": reward.tests,
        "failed_by_the_sandbox": reward.failed,
        "model": str(folder / "model"),
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__,
        },
    }  # fmt: skip


def check(settings: dict[str, Any]) -> dict[str, Any]:
    """What can be refused before hours of work: `problems` that GRPO would be asked. settings as for `align`.

    Raises ValueError, ModelError.
    """
    config = read_config(Path(settings["file"]), settings["set"], Path(settings["folder"]))
    assert config.fit is not None  # the parent has refused a file without [fit]
    student = find_student(config.fit.model)
    problems = list(config.sample.load().problems.values())
    prompts, too_long = _prompts(student, problems, config, settings["grpo"]["max_tokens"])
    _tokenizer(student, prompts)
    _check_number(prompts, settings)
    return {"problems": len(prompts), "too_long": too_long}


def _prompts(
    student: Student, problems: list[Problem], config: RunConfig, max_tokens: int
) -> tuple[dict[str, Prompt], list[str]]:
    """By task, and the tasks whose prompt leaves the student's context no room for an answer."""
    encoder = Encoder.load(student.folder, student.card)
    prompts = {problem.task_id: render(problem, config.sample.format) for problem in problems}
    room = student.card.context_length - max_tokens
    too_long = [task for task, prompt in prompts.items() if len(encoder.prompt(prompt)) > room]
    return {task: prompt for task, prompt in prompts.items() if task not in too_long}, too_long


def _check_number(prompts: dict[str, Prompt], settings: dict[str, Any]) -> None:
    asked = settings["grpo"]["prompts"]
    if len(prompts) < asked:
        raise ValueError(f"--grpo-prompts {asked}: there are only {len(prompts)} problems to take them from")


class _Timed:
    """Calls through, and adds up the seconds."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        began = time.monotonic()
        try:
            return self._function(*arguments, **named)
        finally:
            self.seconds += time.monotonic() - began


def _tokenizer(student: Student, prompts: dict[str, Prompt]) -> Any:
    """transformers' own, which TRL wants. Raises ModelError where it reads a prompt otherwise than we do."""
    auto: Any = transformers.AutoTokenizer
    tokenizer = auto.from_pretrained(
        student.folder, padding_side="left", local_files_only=True, trust_remote_code=False
    )
    encoder = Encoder.load(student.folder, student.card)
    for task, prompt in prompts.items():
        theirs = tokenizer.apply_chat_template(
            _conversation(prompt), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        if list(theirs) != encoder.prompt(prompt):
            raise ModelError(
                f"{student.folder}: transformers' tokenizer gives the prompt of {task} other token ids than "
                "this project's; the sides would not be asked the same"
            )
    return tokenizer


def _conversation(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt.message}]


def _trainer(
    settings: dict[str, Any], config: RunConfig, *, model: Any, tokenizer: Any, reward: SandboxReward,
    prompts: dict[str, Prompt], began: float,
) -> Any:  # fmt: skip
    options, grpo = config.fit, settings["grpo"]
    assert options is not None
    _check_number(prompts, settings)
    rows = [{"prompt": _conversation(prompt), "task_id": task} for task, prompt in prompts.items()]
    arguments = trl.GRPOConfig(  # type: ignore[attr-defined]  # trl makes its names when they are asked for
        output_dir=str(Path(settings["folder"]) / "trl"),
        per_device_train_batch_size=grpo["rows"],
        gradient_accumulation_steps=grpo["prompts"] * grpo["generations"] // grpo["rows"],
        num_generations=grpo["generations"],
        max_completion_length=grpo["max_tokens"],
        temperature=grpo["temperature"],
        learning_rate=grpo["lr"],
        beta=grpo["beta"],
        lr_scheduler_type="constant",  # nothing to cut short where the clock ends it
        max_steps=settings["steps"] or NO_END,
        weight_decay=options.weight_decay,
        max_grad_norm=options.clip,
        seed=options.seed,
        bf16=options.precision == "bf16",
        use_cpu=options.device == "cpu" or not torch.cuda.is_available(),
        gradient_checkpointing=options.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if options.gradient_checkpointing else None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return trl.GRPOTrainer(  # type: ignore[attr-defined]
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[_Budget(settings["seconds"], settings["steps"], began)],
    )


class _Budget(transformers.TrainerCallback):
    """Ends the training after the step in which the time is over; shows its progress."""

    def __init__(self, seconds: float | None, steps: int | None, began: float) -> None:
        self._seconds, self._began = seconds, began
        self._bar = tqdm(total=steps, desc="grpo", unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ARG002  # its protocol
        self._bar.update()
        if self._seconds is not None and time.monotonic() - self._began >= self._seconds:
            control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._bar.close()
