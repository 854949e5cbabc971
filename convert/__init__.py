"""Convert source models into folders that the server can run, without torch.

checkpoint     a source opened: its tensors, and what its tokenizer says of itself
sources        the contract: named tensors read a block of rows at a time, and the facts of the model
               gguf_source, safetensors_source, adapter_source implement it;  hf_view  Hugging Face's names
               over any of them;  hf_config, rope  the facts out of config.json
families       one table of tensor names per family;  architectures  lays them out for CTranslate2
blocks         rows read and encoded on a few threads, in order
writer         quantises and writes model.bin block by block;  safetensors_writer  the same for shards
output         a folder that is complete or absent;  card  what it was made from
tokenizer      tokenizer.json and chat template out of a GGUF file;  gguf_metadata reads its head
ct2            the conversion itself: source -> CTranslate2 folder with its card (rrtf.json)
hf             source -> plain Hugging Face folder;  hf_record  its settings where the source has none
foreign        families that CTranslate2's own converter takes:  whole_model  runs it,  foreign_worker  is its
               process,  loaders  what is registered with it
inspection     the card of a model that has none
verify         what a conversion costs:  parity  the figures,  held_out  the text,  thresholds  the limits,
               runnable  a model of any kind loaded,  provenance  what it was made from,  memory  room for it
gguf_writer    one GGUF file:  gguf_layout  its tensors,  gguf_vocabulary  its tokenizer;  new_file
cli            `rrtf-convert`

May import `rrtf_serve.models`, and `verify` what `rrtf_serve.engine` knows of CTranslate2; imported by nobody
but `benchmarks` (the server finds `ct2.convert` by its entry point).
"""
