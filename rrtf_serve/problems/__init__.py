"""Programming problems: load, render a prompt, extract code from a response, judge, and score.

problem        Problem and the kinds of tests it may have
origins        where data files come from: data folder, installed package, hub
gold           reference solutions: do they pass here, how long do they take
suites         names of suites -> loaders
humaneval, mbpp, evalplus, leetcode, codereval, infilling, codecontests, multipl_e, user_file: one format each
stubs          MBPP's tasks in HumanEval's form, to train on and to choose by
prompts        named prompt formats;  extraction  code out of a response;  syntax  Python's parser
jobs           a problem and a completion -> a job for the sandbox
samples        sample files: JSON Lines in and out, content keys, resuming after a kill
judging        many samples -> verdicts, in parallel
mutation       wrong programmes out of right ones, to see what tests notice
samplers       a running server, or an engine, as a source of responses
evaluate       sample, judge, score: the core that benchmarks and training share
estimator      pass@k, intervals, paired tests

May import `models`, `sandbox` and `engine`; imported by `benchmarks` and `training`.
"""
