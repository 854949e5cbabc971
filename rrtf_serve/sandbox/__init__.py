"""Runs untrusted code and says how it did.

verdict   Status, Kind, TestResult, Verdict
limits    Limits, Level, SandboxUnavailable
jobs      what can be judged: FunctionJob, CaseJob, StdioJob, ProgramJob; plain data all of it
judge     Sandbox: the one entry point
relay     one candidate and one tests' process, and what may pass between them
cell      a confined process that forks one fresh child per run, seen from the host
private     the folder of a cell that has no mounts
bubblewrap, cgroup, languages, selftest   what the names say
inside/   the only modules that run in confined processes

Imports nothing else of the project; imported by `problems` and `api`.
"""
