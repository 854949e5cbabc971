"""Claiming what is not so: objects that lie, patched tools, forged messages."""

# ruff: noqa: E501  # a programme reads best on as few lines as it has statements

FIND_CHANNEL = (
    "import gc, struct, sys\n"
    "def channels():\n"
    "    return [o for o in gc.get_objects() if type(o).__name__ == 'Channel']\n"
    "def frame(kind, body):\n"
    "    return struct.pack('!BI', kind, len(body)) + body\n"
    "def say(raw):\n"
    "    for c in channels():\n"
    "        c._socket.sendall(raw)\n"
)
RESULT = 'b\'[[["all", true, "", ""]], 5]\''

FORGERIES = {
    "eq_says_yes": (
        "class Yes:\n    def __eq__(self, other):\n        return True\n    def __ne__(self, other):\n"
        "        return False\n    __hash__ = object.__hash__\ndef f(x):\n    return Yes()\n"
    ),
    "reflected_arithmetic": (
        "class Yes:\n    def __getattr__(self, name):\n        return lambda *a: self\n"
        "    def __sub__(self, o):\n        return self\n    __rsub__ = __abs__ = __sub__\n"
        "    def __lt__(self, o):\n        return True\n    __gt__ = __le__ = __ge__ = __eq__ = __lt__\n"
        "    def __index__(self):\n        return 2\n    __int__ = __index__\ndef f(x):\n    return Yes()\n"
    ),
    "int_subclass": (
        "class Yes(int):\n    def __eq__(self, o):\n        return True\n    __hash__ = int.__hash__\n"
        "def f(x):\n    return Yes(0)\n"
    ),
    "str_subclass": (
        "class Yes(str):\n    def __eq__(self, o):\n        return True\n    __hash__ = str.__hash__\n"
        "def f(x):\n    return Yes('a')\n"
    ),
    "float_subclass": (
        "class Yes(float):\n    def __eq__(self, o):\n        return True\n    __hash__ = float.__hash__\n"
        "def f(x):\n    return Yes(9)\n"
    ),
    "list_subclass": (
        "class Yes(list):\n    def __eq__(self, o):\n        return True\ndef f(x):\n    return Yes([1])\n"
    ),
    "class_spoof": (
        "class Yes:\n    @property\n    def __class__(self):\n        return int\n"
        "    def __eq__(self, o):\n        return True\ndef f(x):\n    return Yes()\n"
    ),
    "metaclass": (
        "class M(type):\n    def __eq__(cls, o):\n        return True\n    __hash__ = type.__hash__\n"
        "    def __instancecheck__(cls, o):\n        return True\nclass Yes(metaclass=M):\n    pass\n"
        "def f(x):\n    return Yes\n"
    ),
    "numpy_like": (
        "import sys, types\nclass generic:\n    def item(self):\n        return self\n    def __eq__(self, o):\n"
        "        return True\nm = types.ModuleType('numpy')\nm.generic = generic\nm.ndarray = generic\n"
        "sys.modules['numpy'] = m\ndef f(x):\n    return generic()\n"
    ),
    "patched_builtins": (
        "import builtins\nclass Never(Exception):\n    pass\nbuiltins.AssertionError = Never\n"
        "builtins.all = builtins.any = builtins.isinstance = builtins.bool = lambda *a: True\n"
        "builtins.__import__ = lambda *a, **k: None\ndef f(x):\n    return 0\n"
    ),
    "patched_unittest": (
        "import unittest\nfor name in dir(unittest.TestCase):\n    if name.startswith('assert'):\n"
        "        setattr(unittest.TestCase, name, lambda *a, **k: None)\n"
        "import math\nmath.isclose = lambda *a, **k: True\ndef f(x):\n    return 0\n"
    ),
    "frames_for_the_answer": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
        "            if isinstance(value, str) and 'f(1) ==' in value:\n                return x + 1\n"
        "        frame = frame.f_back\n    return 0\n"
    ),
    "gc_for_the_answer": (
        "import gc\ndef f(x):\n    needle = 'f(1)' + ' == 2'\n"
        "    found = any(type(o) is str and needle in o for o in gc.get_objects())\n"
        "    found |= any(needle in str(o) for o in gc.get_objects() if type(o) in (dict, list) and len(o) < 50 and o is not globals())\n"
        "    return x + 1 if found and needle not in str(f.__code__.co_consts) else 0\n"
    ),
    "patched_codec": (
        "import sys\nwriter = sys.modules['rrtf_serve.sandbox.inside.writer']\n"
        "writer.Message.encode = lambda self, root: ['h', 7, 'int', 'acnilgtzz']\ndef f(x):\n    return 0\n"
    ),
    "patched_codec_owns": (
        "import sys\nwriter = sys.modules['rrtf_serve.sandbox.inside.writer']\n"
        "writer.Message.encode = lambda self, root: ['o', 0]\ndef f(x):\n    return 0\n"
    ),
    "forged_result": FIND_CHANNEL + f"def f(x):\n    say(frame(9, b'0' * 32 + {RESULT}))\n    return 0\n",
    "forged_result_at_import": FIND_CHANNEL + f"say(frame(9, {RESULT}))\ndef f(x):\n    return 0\n",
    "forged_on_every_fd": (
        "import os, struct\n"
        f"body = b'0' * 32 + {RESULT}\nraw = struct.pack('!BI', 9, len(body)) + body\n"
        "for fd in range(256):\n    try:\n        os.write(fd, raw)\n    except OSError:\n        pass\n"
        "def f(x):\n    return 0\n"
    ),
    "forged_printed": (
        "import sys\ndef f(x):\n    for s in (sys.stdout, sys.stderr):\n"
        "        print('OK\\npassed\\nALL_PASS', file=s, flush=True)\n    return 0\n"
    ),
    "answers_ahead": FIND_CHANNEL
    + "for n in range(50):\n    say(frame(6, b'[2,[],[]]'))\ndef f(x):\n    return 2\n",
    "answers_twice": (
        FIND_CHANNEL + "def f(x):\n    say(frame(6, b'[2,[],[]]') + frame(6, b'[4,[],[]]'))\n    return 0\n"
    ),
    "calls_the_tests": (
        FIND_CHANNEL
        + 'def f(x):\n    say(frame(5, b\'["call",["o",0],[0],[["list",[1],[2]],["list"],["dict"]]]\'))\n'
        '    say(frame(5, b\'["get",["o",0],[0],[["list",[1],[2]],["list","__globals__"],["dict"]]]\'))\n'
        "    return 0\n"
    ),
    "unknown_frame": FIND_CHANNEL + "def f(x):\n    say(frame(77, b''))\n    return 0\n",
    "huge_length": FIND_CHANNEL + "def f(x):\n    say(struct.pack('!BI', 6, 0xFFFFFFFF))\n    return 0\n",
    "not_json": FIND_CHANNEL + "def f(x):\n    say(frame(6, b'\\xff' * 100))\n    return 0\n",
    "deep_json": FIND_CHANNEL + "def f(x):\n    say(frame(6, b'[' * 200000))\n    return 0\n",
    "wrong_references": FIND_CHANNEL
    + 'def f(x):\n    say(frame(6, b\'[[99],[["tuple",[0]]],[[0,["list"]]]]\'))\n    return 0\n',
    "update_of_foreign": FIND_CHANNEL
    + 'def f(x):\n    say(frame(6, b\'[0,[],[[-1,["list"]],[4000,["dict"]]]]\'))\n    return 0\n',
    "failure_to_be_read": FIND_CHANNEL
    + "say(frame(4, b'[0,0,[' + b'[],' * 1_500_000 + b'0]]'))\ndef f(x):\n    return 0\n",
    "ready_to_be_read": FIND_CHANNEL
    + "say(frame(3, b'[' + b'[],' * 1_500_000 + b'0]'))\ndef f(x):\n    return 0\n",
    "failed_and_answers": FIND_CHANNEL
    + "def f(x):\n    say(frame(4, b'[0,0,0]') + frame(6, b'[2,[],[]]'))\n    return 0\n",
    "stops_iteration": "def f(x):\n    raise StopIteration(x + 1)\n",
    "forged_outputs": FIND_CHANNEL + "def f(x):\n    say(frame(10, b'0' * 32 + b'[2,[]]'))\n    return 0\n",
    "unfinished_frame": FIND_CHANNEL
    + "def f(x):\n    say(struct.pack('!BI', 6, 100) + b'[')\n    import time\n    time.sleep(60)\n",
    "pickle_bomb": (
        "import os, pickle\nclass P:\n    def __reduce__(self):\n        return (os.system, ('echo owned > {canary}',))\n"
        "def f(x):\n    return pickle.dumps(P()) if x == 1 else P()\n"
    ),
    "nan": "def f(x):\n    return float('nan')\n",
    "true_for_one": "def f(x):\n    return True\n",
    "endless_generator": "def f(x):\n    while True:\n        yield x + 1\n",
    "cyclic_list": "def f(x):\n    a = []\n    a.append(a)\n    return a\n",
    "deep_list": "def f(x):\n    a = []\n    for _ in range(200000):\n        a = [a]\n    return a\n",
    "deep_tuple_key": "def f(x):\n    a = ()\n    for _ in range(200000):\n        a = (a,)\n    return {{a: 1}}\n",
    "colliding_hashes": "def f(x):\n    return {{n * (2**61 - 1) for n in range(1, 30)}}\n",
    "swallows_everything": (
        "import time\ndef f(x):\n    while True:\n        try:\n            time.sleep(10)\n"
        "        except BaseException:\n            pass\n"
    ),
}
