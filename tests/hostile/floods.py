"""Using up what there is."""

# ruff: noqa: E501  # a programme reads best on as few lines as it has statements

FLOODS = {
    "shared_memory": (
        "import os\nwritten = 0\nfor n in range(64):\n    try:\n"
        "        with open(f'/dev/shm/{n}', 'wb') as f:\n            written += f.write(b'x' * (1 << 20))\n"
        "    except OSError:\n        break\ndef f(x):\n    return x + 1 if written > 8 << 20 else 0\n"
    ),
    "loop": "def f(x):\n    while True:\n        pass\n",
    "loop_at_import": "while True:\n    pass\n",
    "sleep": "import time\ndef f(x):\n    time.sleep(3600)\n",
    "deadlock": "import threading\ndef f(x):\n    lock = threading.Lock()\n    lock.acquire()\n    lock.acquire()\n",
    "c_loop": "def f(x):\n    return sum(range(10**12))\n",
    "c_loop_endless": "import itertools\ndef f(x):\n    return sum(itertools.count())\n",
    "c_power": "def f(x):\n    return len(str(3 ** 10**8))\n",
    "regex": "import re\ndef f(x):\n    return re.match('(a+)+$', 'a' * 60 + 'b')\n",
    "signals_masked": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
        "for n in range(1, 65):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\ndef f(x):\n    while True:\n        pass\n"
    ),
    "product_255": "import itertools\ndef f(x):\n    return list(itertools.product(range(200), repeat=6))\n",
    "memory": "def f(x):\n    return len(bytearray(1 << 40))\n",
    "memory_slowly": "def f(x):\n    a = []\n    while True:\n        a.append(bytearray(1 << 20))\n",
    "memory_mapped": (
        "import mmap\ndef f(x):\n    a = []\n    while True:\n        m = mmap.mmap(-1, 1 << 24)\n"
        "        m.write(b'x' * (1 << 24))\n        a.append(m)\n"
    ),
    "memory_swallowed": (
        "def f(x):\n    a = []\n    while True:\n        try:\n            a.append('x' * (1 << 20) * 2)\n"
        "        except MemoryError:\n            pass\n"
    ),
    "memory_at_import": "a = [0] * (1 << 40)\ndef f(x):\n    return x + 1\n",
    "value_too_big": "def f(x):\n    return 'x' * (12 << 20)\n",
    "many_values": "def f(x):\n    return [[]] * (3 << 20)\n",
    "many_handles": "def f(x):\n    return [object() for _ in range(300000)]\n",
    "huge_int": "def f(x):\n    return 1 << (1 << 28)\n",
    "fork_bomb": (
        "import os\ndef f(x):\n    while True:\n        try:\n            os.fork()\n        except OSError:\n            pass\n"
    ),
    "fork_bomb_libc": (
        "import ctypes\nlibc = ctypes.CDLL(None)\ndef f(x):\n    while True:\n        libc.fork()\n        libc.vfork()\n"
    ),
    "thread_bomb": (
        "import threading\ndef f(x):\n    gate = threading.Event()\n    while True:\n        try:\n"
        "            threading.Thread(target=gate.wait).start()\n        except RuntimeError:\n            pass\n"
    ),
    "process_pool": (
        "import multiprocessing\ndef f(x):\n    with multiprocessing.Pool(4) as p:\n        return p.map(abs, [x])[0]\n"
    ),
    "disk": (
        "def f(x):\n    n = 0\n    while True:\n        n += 1\n        with open(f'{{n}}', 'wb') as file:\n"
        "            file.write(b'x' * (1 << 20))\n"
    ),
    "disk_swallowed": (
        "def f(x):\n    n = 0\n    while True:\n        n += 1\n        try:\n            with open(f'{{n}}', 'wb') as file:\n"
        "                file.write(b'x' * (1 << 20))\n        except OSError:\n            pass\n"
    ),
    "disk_unlinked": (
        "import os\ndef f(x):\n    a = []\n    while True:\n        a.append(open('t', 'wb'))\n        os.unlink('t')\n"
        "        a[-1].write(b'x' * (1 << 20))\n        a[-1].flush()\n"
    ),
    "sparse_file": "def f(x):\n    with open('t', 'wb') as file:\n        file.truncate(1 << 50)\n",
    "many_files": "def f(x):\n    n = 0\n    while True:\n        n += 1\n        open(f'{{n}}', 'w').close()\n",
    "many_folders": ("import os\ndef f(x):\n    while True:\n        os.mkdir('d')\n        os.chdir('d')\n"),
    "locked_folder": (
        "import os\nos.makedirs('a/b/c')\nopen('a/b/c/file', 'w').close()\nos.chmod('a/b', 0)\nos.chmod('a', 0)\n"
        "def f(x):\n    return 0\n"
    ),
    "open_files": "def f(x):\n    a = []\n    while True:\n        a.append(open('/dev/null'))\n",
    "pipes": (
        "import os\ndef f(x):\n    while True:\n        r, w = os.pipe()\n        os.set_blocking(w, False)\n"
        "        os.write(w, b'x' * 65536)\n"
    ),
    "socket_pairs": "import socket\ndef f(x):\n    a = []\n    while True:\n        a.append(socket.socketpair())\n",
    "output": "def f(x):\n    while True:\n        print('x' * 10000)\n",
    "output_raw": "import os\ndef f(x):\n    while True:\n        os.write(2, b'x' * 65536)\n",
    "output_at_import": "import os\nwhile True:\n    os.write(1, b'x' * 65536)\n",
    "recursion": "def f(x):\n    return f(x)\n",
    "recursion_unbound": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return f(x) + 1\n",
    "recursion_in_c": (
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self):\n        return repr(self)\n"
        "def f(x):\n    return repr(A())\n"
    ),
    "parser_bomb": "x = " + "(" * 5000 + ")" * 5000 + "\ndef f(x):\n    return 0\n",
    "compiler_bomb": "def f(x):\n    return " + "-" * 100000 + "1\n",
    "constant_bomb": "def f(x):\n    return 0\ny = [(1 << 30) * (1 << 30)] * 3\nz = ((1,) * (1 << 33))\n",
    "reads_input": "def f(x):\n    return input()\n",
    "slow_answers": "import time\ndef f(x):\n    time.sleep(0.5)\n    return f(x)\n",
}
