"""How tokens are made.

protocol   Engine, Batch, Request, Delta: the contract between the API and whatever runs the model
ct2        CTranslate2 behind that contract;  ct2_batch  its batches
torch      PyTorch behind that contract, a package of its own
checks     what every engine refuses of a request;  cores  how many threads it takes
heap       freed memory given back to the system
logprobs   log-probabilities out of raw logits
scheduler  the queue in front of an engine, and what submitters call
           accepted  all that waits or runs;  waiting  what waits, in turns between owners;  job  one decode
           and who listens to it;  lane  the threads that run it;  load  what an engine can run at once
           stream  what a submitter gets;  score  a prompt scored piece by piece;  ticket  whose a job is and
           how urgent;  observer  what the scheduler tells of its work

Engines own tokens, never text. May import `rrtf_serve.models`; imported by `api` and `main`.
"""
