"""Serve code models: everything a running server needs, and nothing more.

models/   what a model is: catalogue, store, prompt formats, tokens
engine/   how tokens are made: the Engine protocol, CTranslate2, the scheduler
sandbox/  untrusted code: run it, judge it
problems/ programming problems: load, prompt, extract, judge, score
api/      how clients ask: OpenAI's HTTP API
config    settings of `rrtf-serve`;  arguments  its flags;  preparation  fetch and convert
process   address, start and end;  connection  how long a request may take to arrive
prepared  models ready on the disk;  roster  models in memory, as many as fit;  memory  how much is free
loading  which engine runs what;  sampling  opens what answers problems: an engine or a URL
greeting  what is printed at the start;  parts  finds converters and pages by entry point;  stopping  SIGTERM
          as an exception
main      the composition root behind `rrtf-serve`

Imports none of `convert`, `ui`, `benchmarks` and `training`; `main` finds converters and pages through
entry points. Inside, arrows point only downwards: main -> preparation, process -> api -> engine -> models;
`problems` stands beside `api`, `sandbox` beside `engine`.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("rrtf-serve")
except PackageNotFoundError:  # a source tree on sys.path that was never installed
    __version__ = "0+unknown"
