"""How clients ask: OpenAI's HTTP API over a scheduler.

app          create_app: routes;  settings  what is served and within which limits
visit        one request on its way, ids and counts;  origin  which names and pages are let in
gate         who may come in and how often;  keys  whose a key is;  limits  requests and tokens per minute
body         JSON within a limit;  errors  OpenAI's envelope
fields       every field and what becomes of it;  kinds  what values may be;  messages  chat messages
completions  a request's plan: prompts as tokens, limits, options;  chat  likewise;  options  what both share
generation   from a plan to pieces of text;  shapes  their JSON;  answer, sse  HTTP answers, whole or streamed
models       which model answers;  listing  the model list
openapi      what /openapi.json says
probes       /health, /ready, /metrics;  metrics  figures for Prometheus;  log  a line for each request
infill       a job from what stands around an editor's cursor;  trimming, scanner  where its answer ends
dialects     other servers' routes over the same plans;  ndjson  answers as lines of JSON

A request goes body -> fields -> completions or chat -> generation -> shapes -> answer. May import `engine`
and `models`; imported by `main`.
"""
