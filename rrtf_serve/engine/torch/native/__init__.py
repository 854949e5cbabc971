"""The torch engine's own way to run a model on a CPU: one compiled call per forward pass.

kernels.cpp  the pass itself, and the packing of matrices into tiles
library      builds kernels.cpp with the machine's compiler, keeps it, loads it
layout       the structures that Python and kernels.cpp share
packing      matrices of a checkpoint in packed form: bfloat16, 8 or 4 bits
checkpoint   a Hugging Face or GPTQ folder read into such matrices, one tensor at a time
decoder      NativeDecoder: what decoder.Decoder is for transformers' models

Why beside transformers: docs/decisions.md. Not for CUDA, float32, or families that checkpoint doesn't name.
"""
