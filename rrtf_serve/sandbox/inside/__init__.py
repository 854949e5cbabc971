"""The only modules that run in confined processes; they import the standard library and each other, no more.

wire        plain data and handles as JSON text;  frames  one message after another on a stream
candidate   runs the candidate and answers calls;  examiner  runs the tests and makes calls
proxies     what the tests see of a candidate's own objects;  oracle  how outputs are compared
assertions  test code rewritten so that each assertion is a test
zygote      forks one fresh child per run
folder      what a run left on the disk, measured and removed
confinement namespaces, landlock, rlimits;  seccomp, syscalls  the system-call filter

Nothing here is trusted by the host once untrusted code has started.
"""
