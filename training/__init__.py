"""RRTF training (arXiv 2307.14936): from problems to an aligned model.

problems   seeds, evolve (evolution, evolution_rules), clean (contamination, passages, near_duplicates,
           contamination_report), problem_files, problem_sets
tests      agreed_tests (proposals, outcomes, agreement, hidden_tests): tests that programmes agree on;
           pytest_source (repository, pytest_code, pytest_stand_in): a repository's own tests
answers    sources, sample, judge, answers, rank; records is what rank writes and fit reads
model      fit (fit_options, student, encoding, packing, logprobs, scorer, loss, loop, schedule, checkpoint,
           history, adapters)
run        all stages of one file (config, tables)
commands/  one module per command; cli is `rrtf-train`
demo/      the tutorial's problems and run file;  configs/  for `accelerate launch`

May import `rrtf_serve`; imported by `benchmarks`.
"""
