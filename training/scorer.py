"""A causal language model as what the loss needs: rows in, the log-probability of each answer out.

The whole of it is one module's forward, so that it can be wrapped whole: DDP, FSDP and DeepSpeed gather and
reduce what it uses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rrtf_serve.models.errors import ModelError
from training.adapters import without_adapter
from training.logprobs import answer_sums, logprobs_of, logprobs_through
from training.packing import PADDING, Rows, block_mask

# What some families do to the logits behind the output matrix.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


class Scorer(nn.Module):
    """model: a transformers causal language model, or a PEFT model around one. layout: see packing. sharded:
    its weights are not whole in each process (FSDP, DeepSpeed)."""

    def __init__(self, model: Any, layout: str, *, sharded: bool = False) -> None:
        """Raises ModelError on a model that changes its logits in a way not known here."""
        super().__init__()
        self.model = model
        self._layout = layout
        causal = without_adapter(model)
        config = causal.config
        changed = [name for name in _LOGIT_CHANGES if getattr(config, name, None) not in (None, 1, 1.0)]
        if changed:
            raise ModelError(f"{config.model_type}: its {changed[0]} is not supported in training")
        # What FSDP shards by.
        self._no_split_modules = getattr(causal, "_no_split_modules", None)
        # Kept out of the module tree: they are inside `model` already.
        object.__setattr__(self, "_backbone", causal.base_model)
        head = causal.get_output_embeddings()
        object.__setattr__(self, "_head", head)
        self._plain_head = type(head) is nn.Linear and head.bias is None and not sharded
        self._vocabulary = int(config.vocab_size)
        self._windows = _windows(config)
        self._additive = config._attn_implementation == "eager"

    def forward(  # noqa: PLR0917  # tensors by position are what every wrapper passes on
        self, ids: Tensor, positions: Tensor, segments: Tensor, reading: Tensor, targets: Tensor,
        owner: Tensor, answers: int,
    ) -> Tensor:  # fmt: skip
        """The fields of Rows; the result: [A], float32 or wider."""
        output = self._backbone(  # type: ignore[operator]  # nn.Module types its attributes as tensors
            input_ids=ids,
            position_ids=positions,
            attention_mask=self._mask(segments, positions),
            use_cache=False,
        )
        hidden = output.last_hidden_state.flatten(0, 1)[reading]
        head: Any = self._head
        if self._plain_head:
            logprobs = logprobs_of(hidden, targets, head.weight)
        else:
            logprobs = logprobs_through(hidden, targets, head, self._vocabulary)
        return answer_sums(logprobs, owner, answers)

    def _mask(self, segments: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        if self._layout == "separate":
            return (segments != PADDING).long()
        masks = {kind: self._block(segments, positions, window) for kind, window in self._windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _block(self, segments: Tensor, positions: Tensor, window: int | None) -> Tensor:
        seen = block_mask(segments, positions, window)
        if not self._additive:
            return seen
        dtype = next(self.parameters()).dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(
            ~seen, torch.finfo(dtype).min
        )


def score_rows(scorer: nn.Module, rows: Rows) -> Tensor:
    """[A]: the log-probability of each answer. `scorer`: a Scorer, wrapped or not."""
    sums: Tensor = scorer(
        rows.ids, rows.positions, rows.segments, rows.reading, rows.targets, rows.owner, len(rows.lengths)
    )
    return sums


def _windows(config: Any) -> dict[str, int | None]:
    """The attention window of each kind of layer, in positions; None: no limit."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    unknown = kinds - {"full_attention", "sliding_attention"}
    if unknown:
        raise ModelError(
            f"{config.model_type}: has {unknown.pop()} layers, which take no mask; use --layout separate"
        )
    if not kinds:  # one kind of layer, which has the window if the configuration does
        return {"": window}
    both: dict[str, int | None] = {"full_attention": None, "sliding_attention": window}
    # Families that know both kinds are handed both masks.
    return both if "sliding_attention" in kinds else {"": None}
