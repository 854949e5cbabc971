"""One forward pass of a transformers model over slots: token ids in, logits out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rrtf_serve.engine.torch.attention import Pass
from rrtf_serve.engine.torch.slots import Slots

_LOGITS_BYTES = 64 * 2**20  # what scoring holds in logits at a time


class Decoder:
    """A causal language model of transformers whose attention is the one of `attention`.

    To be called in inference mode, by one thread at a time.
    """

    def __init__(self, model: Any, kernels: str = "torch") -> None:
        self._body = model.base_model
        self._head = model.get_output_embeddings()
        config = model.config
        self.vocabulary = int(
            self._head.weight.shape[0] if hasattr(self._head, "weight") else config.vocab_size
        )
        weight = model.get_input_embeddings().weight
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        self.kernels = kernels
        self.independent_rows = self.dtype == torch.float32
        self.weights_bytes = _weights_bytes(model)
        heads = config.num_attention_heads
        self._head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        self._layers = config.num_hidden_layers
        if config.model_type == "gpt_bigcode":
            self._kv_heads = 1 if config.multi_query else heads
        else:
            self._kv_heads = config.num_key_value_heads

    def new_slots(self, dtype: torch.dtype | None = None) -> Slots:
        """An empty store for this model. `dtype`: of keys and values; None: as the weights compute."""
        return Slots(
            self._layers, self._kv_heads, self._head_dim, dtype=dtype or self.dtype, device=self.device
        )

    def prefill(self, tokens: list[int], slots: Slots, slot: int, start: int) -> Tensor:
        """Read tokens of one row after the `start` that its slot holds: logits after the last, [1, V]."""
        hidden = self._run([tokens], slots, [slot], [start])
        return self._logits(hidden[:, -1])

    def decode(self, tokens: list[int], slots: Slots, places: list[int], starts: list[int]) -> Tensor:
        """Read one token for each of some rows: logits, [R, V].

        places: the slot of each row, all different. starts: tokens that it holds.
        """
        hidden = self._run([[token] for token in tokens], slots, places, starts)
        return self._logits(hidden[:, -1])

    def logits_of(self, tokens: list[int], slots: Slots, start: int) -> Iterator[Tensor]:
        """Logits after each token of one row in slot 0, in order, in pieces of bounded size: [n, V] each."""
        hidden = self._run([tokens], slots, [0], [start])[0]
        size = max(1, _LOGITS_BYTES // (4 * self.vocabulary))
        for at in range(0, len(hidden), size):
            yield self._logits(hidden[at : at + size])

    def _run(self, tokens: list[list[int]], slots: Slots, places: list[int], starts: list[int]) -> Tensor:
        """[R, n] token ids -> last hidden states, [R, n, hidden]."""
        ids = torch.tensor(tokens, device=self.device)
        positions = torch.tensor(starts, device=self.device).reshape(-1, 1)
        hidden: Tensor = self._body(
            input_ids=ids,
            position_ids=positions + torch.arange(ids.shape[1], device=self.device),
            use_cache=False,
            slot_pass=Pass(slots, places, starts, ids.shape[1]),
        ).last_hidden_state
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> float32 [n, V]."""
        logits: Tensor = self._head(hidden)
        return logits.float()


def _weights_bytes(model: Any) -> int:
    """Bytes of parameters and buffers, a tied matrix counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
