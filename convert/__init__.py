"""Convert source models into folders that the server can run, without torch.

checkpoint     a source opened: its tensors, and what its tokenizer says of itself
sources        the contract: named tensors read a block of rows at a time, and the facts of the model
               gguf_source, safetensors_source, adapter_source implement it
architectures  one table per family: source names -> CTranslate2 specification
writer         quantises and writes model.bin block by block
output         a folder that is complete or absent
tokenizer      tokenizer.json and chat template out of a GGUF file;  gguf_metadata reads its head
records        JSON files of a Hugging Face folder, with their types checked
ct2            the conversion itself: source -> CTranslate2 folder with its card (rrtf.json)
verify         what a conversion costs:  parity  the figures,  held_out  the text,  thresholds  the limits,
               runnable  a model of any kind loaded,  provenance  what it was made from,  memory  room for it
gguf_writer    one GGUF file:  gguf_layout  its tensors,  gguf_vocabulary  its tokenizer;  new_file
cli            `rrtf-convert`

May import `rrtf_serve.models`, and `verify` what `rrtf_serve.engine` knows of CTranslate2; imported by nobody
but `benchmarks` (the server finds `ct2.convert` by its entry point).
"""
