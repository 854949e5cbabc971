"""Leaving early, with a smile."""

# ruff: noqa: E501  # a programme reads best on as few lines as it has statements

EXITS = {
    "exit_at_import": "import sys\nsys.exit(0)\n",
    "exit_in_call": "import sys\ndef f(x):\n    sys.exit(0)\n",
    "quit_in_call": "def f(x):\n    quit()\n",
    "os_exit_at_import": "import os\nos._exit(0)\n",
    "os_exit_in_call": "import os\ndef f(x):\n    os._exit(0)\n",
    "exit_after_one_answer": (
        "import os\ncalls = []\ndef f(x):\n    calls.append(x)\n    if len(calls) > 1:\n        os._exit(0)\n"
        "    return x + 1\n"
    ),
    "atexit_claims": (
        "import atexit, os, sys\natexit.register(lambda: (print('passed'), os._exit(0)))\n"
        "def f(x):\n    raise SystemExit(0)\n"
    ),
    "excepthook_claims": (
        "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\nsys.unraisablehook = sys.excepthook\n"
        "def f(x):\n    raise RuntimeError('no')\n"
    ),
    "base_exception": "class Out(BaseException):\n    pass\ndef f(x):\n    raise Out\n",
    "keyboard_interrupt": "def f(x):\n    raise KeyboardInterrupt\n",
    "generator_exit": "def f(x):\n    raise GeneratorExit\n",
    "stop_iteration": "def f(x):\n    raise StopIteration(x + 1)\n",
    "named_like_ours": "class Gone(BaseException):\n    pass\ndef f(x):\n    raise Gone\n",
    "exception_that_bites": (
        "class Bite(Exception):\n    def __str__(self):\n        raise SystemExit(0)\n    __repr__ = __str__\n"
        "    @property\n    def args(self):\n        raise SystemExit(0)\ndef f(x):\n    raise Bite\n"
    ),
    "become_true": "import os\ndef f(x):\n    os.execv('/bin/true', ['true'])\n",
    "kill_self": "import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGKILL)\n    return 0\n",
    "abort": "import os\ndef f(x):\n    os.abort()\n",
    "segfault": "import ctypes\ndef f(x):\n    ctypes.string_at(8)\n",
    "stop_self": "import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGSTOP)\n    return 0\n",
    "close_everything": (
        "import os, time\ndef f(x):\n    os.closerange(0, 256)\n    while True:\n        time.sleep(1)\n"
    ),
    "thread_exits": (
        "import os, threading\ndef f(x):\n    threading.Thread(target=os._exit, args=(0,)).start()\n"
        "    threading.Event().wait()\n"
    ),
    "no_entry_point": "def g(x):\n    return x + 1\n",
    "entry_is_data": "f = 2\n",
    "empty": "",
    "syntax_error": "def f(x) return x + 1\n",
    "nul_byte": "def f(x):\n    return x + 1\n\0",
    "surrogate": "def f(x):\n    return x + 1\n# \ud800\n",
}
