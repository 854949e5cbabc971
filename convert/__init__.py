"""Convert source models into folders that the server can run, without torch.

sources        named tensors of a GGUF file, safetensors shards or a base + adapter, read a block at a time
architectures  one table per family: source names -> CTranslate2 specification
writer         quantises and writes tensor by tensor; a folder is complete or absent
tokenizer      tokenizer.json and chat template out of a GGUF file
ct2            the conversion itself: source -> CTranslate2 folder with its card (rrtf.json)
cli            `rrtf-convert`

May import `rrtf_serve.models`; imported by nobody but `benchmarks` (the server finds `ct2.convert` by entry point).
"""
