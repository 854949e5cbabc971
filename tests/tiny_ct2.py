"""Makes tiny random CTranslate2 folders with numpy alone: real models for tests, in milliseconds.

    folder = write_llama(tmp_path / "model")               # rotary positions, grouped-query attention
    folder = write_bigcode(tmp_path / "model", context=64)  # learned positions, multi-query attention

    folder = write_servable(tmp_path / "model")            # rrtf-serve takes it, in a second

The first two are not servable by themselves: no tokenizer.json and no card. Their vocabulary strings are
"<unk>", "<s>", "</s>" for ids 0 to 2 and "t3", "t4", ... after that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
from ctranslate2.specs import common_spec, transformer_spec

UNK, BOS, EOS = 0, 1, 2

# Large enough that greedy answers differ from prompt to prompt; at the usual 0.02 every prompt ends alike.
_SPREAD = 0.6


def vocabulary(size: int) -> list[str]:
    return ["<unk>", "<s>", "</s>", *(f"t{index}" for index in range(3, size))]


def write_llama(
    folder: Path,
    *,
    vocab: int = 96,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 64,
    seed: int = 0,
    quantization: str | None = None,
    tokens: list[str] | None = None,
) -> Path:
    """Llama's shape: RMSNorm, SwiGLU, rotary positions, grouped-query attention. `tokens`: the vocabulary."""
    random = np.random.default_rng(seed)
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        layers,
        heads,
        pre_norm=True,
        activation=common_spec.Activation.SWISH,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        num_heads_kv=kv_heads,
    )
    decoder = spec.decoder
    decoder.layer_norm.gamma = _norm(random, hidden)
    for layer in decoder.layer:
        layer.self_attention.layer_norm.gamma = _norm(random, hidden)
        qkv = hidden + 2 * kv_heads * (hidden // heads)
        layer.self_attention.linear[0].weight = _matrix(random, qkv, hidden)
        layer.self_attention.linear[1].weight = _matrix(random, hidden, hidden)
        layer.ffn.layer_norm.gamma = _norm(random, hidden)
        layer.ffn.linear_0.weight = _matrix(random, ffn, hidden)
        layer.ffn.linear_0_noact.weight = _matrix(random, ffn, hidden)
        layer.ffn.linear_1.weight = _matrix(random, hidden, ffn)
    spec.config.layer_norm_epsilon = 1e-6
    tokens = tokens or vocabulary(vocab)
    return _save(spec, random, folder, tokens=tokens, hidden=hidden, quantization=quantization)


def write_servable(folder: Path, *, context: int = 512) -> Path:
    """A llama with a tokenizer of bytes and a chat template."""
    write_llama(folder, tokens=tiny_models.tokens())
    tiny_models.write_tokenizer(folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": context}))
    return folder


def write_bigcode(
    folder: Path,
    *,
    context: int = 64,
    vocab: int = 96,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    seed: int = 0,
    quantization: str | None = None,
    tokens: list[str] | None = None,
) -> Path:
    """GPTBigCode's (StarCoder's) shape: `context` learned positions, multi-query attention."""
    random = np.random.default_rng(seed)
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        layers,
        heads,
        pre_norm=True,
        activation=common_spec.Activation.GELUTanh,
        multi_query_attention=True,
    )
    decoder = spec.decoder
    decoder.position_encodings.encodings = _matrix(random, context, hidden)
    _layer_norm(random, decoder.layer_norm, hidden)
    for layer in decoder.layer:
        _layer_norm(random, layer.self_attention.layer_norm, hidden)
        _linear(random, layer.self_attention.linear[0], hidden + 2 * (hidden // heads), hidden)
        _linear(random, layer.self_attention.linear[1], hidden, hidden)
        _layer_norm(random, layer.ffn.layer_norm, hidden)
        _linear(random, layer.ffn.linear_0, 4 * hidden, hidden)
        _linear(random, layer.ffn.linear_1, hidden, 4 * hidden)
    tokens = tokens or vocabulary(vocab)
    return _save(spec, random, folder, tokens=tokens, hidden=hidden, quantization=quantization)


def _save(
    spec: Any,
    random: np.random.Generator,
    folder: Path,
    *,
    tokens: list[str],
    hidden: int,
    quantization: str | None,
) -> Path:
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = _matrix(random, len(tokens), hidden)
    decoder.projection.weight = _matrix(random, len(tokens), hidden)
    spec.config.unk_token, spec.config.bos_token, spec.config.eos_token = (
        tokens[UNK],
        tokens[BOS],
        tokens[EOS],
    )
    spec.register_vocabulary(tokens)
    spec.validate()
    spec.optimize(quantization=quantization)
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    return folder


def _matrix(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return random.normal(0, _SPREAD / np.sqrt(columns) * 4, (rows, columns)).astype(np.float32)


def _norm(random: np.random.Generator, size: int) -> np.ndarray:
    return random.normal(1, 0.1, size).astype(np.float32)


def _linear(random: np.random.Generator, linear: Any, rows: int, columns: int) -> None:
    linear.weight = _matrix(random, rows, columns)
    linear.bias = random.normal(0, 0.1, rows).astype(np.float32)


def _layer_norm(random: np.random.Generator, norm: Any, size: int) -> None:
    norm.gamma = _norm(random, size)
    norm.beta = random.normal(0, 0.1, size).astype(np.float32)
