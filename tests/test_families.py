from __future__ import annotations

import pytest

from rrtf_serve.models.catalog import MODELS
from rrtf_serve.models.families import FAMILIES, ChatFormat, detect_family

QWEN = ("<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
STARCODER = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", "<|endoftext|>")
LLAMA = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", "<s>", "</s>")
DEEPSEEK = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "<|EOT|>")  # noqa: RUF001  # full-width bars


class Words:
    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def token_id(self, text: str) -> int | None:
        return self.tokens.index(text) if text in self.tokens else None


@pytest.mark.parametrize(
    ("architecture", "tokens", "name", "template", "family"),
    [
        ("qwen2", QWEN, "my-finetune", "", "qwen2.5-coder"),
        ("llama", ("<|im_start|>", "<|im_end|>", "<repo_name>"), "SmolLM2", "", "smollm2"),
        ("starcoder", STARCODER, "starcoderbase-1b", "", "starcoder"),
        ("starcoder2", STARCODER, "starcoder2-3b", "", "starcoder2"),
        ("starcoder", STARCODER, "WizardCoder-15B-V1.0", "", "wizardcoder"),
        ("llama", ("<s>",), "WizardCoder-Python-7B", "", "wizardcoder"),
        (
            "starcoder",
            (*STARCODER, "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
            "beta",
            "",
            "starchat",
        ),
        ("llama", LLAMA, "x", "[INST]", "codellama"),
        ("llama", DEEPSEEK, "x", "### Instruction:\n### Response:", "deepseek-coder"),
        ("llama", ("<s>",), "x", "### Instruction:\n### Response:", "wizardcoder"),
        ("llama", ("<s>", "</s>"), "x", "", "plain"),
    ],
)
def test_detection(architecture: str, tokens: tuple[str, ...], name: str, template: str, family: str) -> None:
    assert detect_family(architecture, Words(*tokens), name, template) == family


def test_the_keys_are_the_catalogues() -> None:
    assert set(FAMILIES) == {
        "qwen2.5-coder",
        "smollm2",
        "starcoder",
        "starcoder2",
        "starchat",
        "wizardcoder",
        "codellama",
        "deepseek-coder",
        "plain",
    }
    assert {model.family for model in MODELS} <= set(FAMILIES)


def test_markers_are_the_vendors() -> None:
    markers = {key: (f.fim.prefix, f.fim.suffix, f.fim.middle) for key, f in FAMILIES.items() if f.fim}
    assert markers.pop("qwen2.5-coder") == QWEN[2:]
    assert markers.pop("codellama") == LLAMA[:3]
    assert markers.pop("deepseek-coder") == DEEPSEEK[:3]
    assert set(markers) == {"starcoder", "starcoder2", "starchat", "wizardcoder"}
    assert set(markers.values()) == {STARCODER[:3]}


def test_every_marker_ends_a_middle() -> None:
    """A model that starts another example instead of ending is stopped there."""
    for family in FAMILIES.values():
        if family.fim is not None:
            assert {family.fim.prefix, family.fim.suffix, family.fim.middle} <= set(family.fim.ends)
    starcoder2 = FAMILIES["starcoder2"].fim
    assert starcoder2 is not None
    assert "<file_sep>" in starcoder2.ends
    assert FAMILIES["starcoder"].chat is ChatFormat.DOCSTRING
