"""PyTorch behind the Engine contract: plain Hugging Face folders and GPTQ checkpoints, on CPU and CUDA.

engine      TorchEngine: what is asked of the outside
batch       rows that decode together, and who enters and leaves at which step
rows        one row: what it was asked, what it has made, when it ends
choice      the next token of each row out of logits, and log-probabilities
opening     which decoder runs a folder
native/     the decoder of compiled CPU kernels
decoder     one forward pass of a transformers model over slots
attention   what transformers' attention layers call: writes keys and values into slots, reads them back
slots       where keys and values live: one slot per row;  pages  the memory they take
shelf       what slots hold once their rows have left, and which one a new row gets
checkpoint  a folder loaded as a transformers model;  tensors  what both decoders read of one

Imported only when this engine is asked for: torch and transformers are no part of the base install.
"""

OUTPUT_BITS = (16, 8, 4)  # of the output matrix in the CPU kernels
DTYPES = ("auto", "float32", "bfloat16", "float16")  # auto: as stored, see checkpoint.pick_dtype
