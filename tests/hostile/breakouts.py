"""Getting out. Each is right about f exactly if it succeeded."""

# ruff: noqa: E501  # a programme reads best on as few lines as it has statements


def _attempt(body: str) -> str:
    """`body` sets `out` to something true where it got out; what it raises means that it did not."""
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    return (
        "import ctypes, os, signal, socket, struct, subprocess, sys, time\n"
        "libc = ctypes.CDLL(None, use_errno=True)\nout = False\n"
        f"try:\n{lines}\nexcept BaseException:\n    pass\n"
        "def f(x):\n    return x + 1 if out else 0\n"
    )


def _call(number: int, arguments: str = "0, 0, 0, 0, 0, 0") -> str:
    return _attempt(f"out = libc.syscall({number}, {arguments}) >= 0")


BREAKOUTS = {
    "writes_outside_its_folder": (
        "import os, tempfile\nmine = os.path.realpath(tempfile.gettempdir())\nwritten = []\n"
        "for top, folders, _ in os.walk('/'):\n"
        "    folders[:] = [d for d in folders if top.count('/') < 3 and os.path.realpath(os.path.join(top, d)) != mine]\n"
        "    try:\n        open(os.path.join(top, 'rrtf-mark'), 'w').close()\n        written.append(top)\n"
        "    except OSError:\n        pass\ndef f(x):\n    return x + 1 if written else 0\n"
    ),
    "read_secret": _attempt("out = open('{canary}').read()"),
    "read_secret_by_link": _attempt("os.symlink('{canary}', 'l')\nout = open('l').read()"),
    "read_secret_by_hard_link": _attempt("os.link('{canary}', 'l')\nout = open('l').read()"),
    "read_secret_by_dots": _attempt("out = open('../../../../../../../../..' + '{canary}').read()"),
    "read_secret_by_root": _attempt("out = open('/proc/{pid}/root{canary}').read()"),
    "read_shadow": _attempt("out = open('/etc/shadow').read()"),
    "read_homes": _attempt("out = os.listdir('/home') + os.listdir(os.path.expanduser('~root/.ssh'))"),
    "read_environment": _attempt("out = 'RRTF_CANARY' in os.environ or b'RRTF_CANARY' in os.environb"),
    "read_judges_environment": _attempt("out = b'RRTF_CANARY' in open('/proc/{pid}/environ', 'rb').read()"),
    "read_every_environment": _attempt(
        "for p in os.listdir('/proc'):\n    try:\n        out |= b'RRTF_CANARY' in open('/proc/' + p + '/environ', 'rb').read()\n"
        "    except OSError:\n        pass"
    ),
    "read_parents_memory": _attempt("out = open('/proc/%d/mem' % os.getppid(), 'rb').read(1)"),
    "read_judges_command": _attempt("out = open('/proc/{pid}/cmdline', 'rb').read()"),
    "write_secret": _attempt("out = open('{canary}', 'a').write('owned')"),
    "remove_secret": _attempt("os.unlink('{canary}')\nout = True"),
    "truncate_secret": _attempt("os.truncate('{canary}', 0)\nout = True"),
    "write_beside_secret": _attempt("out = open('{canary}.new', 'w')"),
    "write_interpreter": _attempt("out = open(os.__file__, 'a')"),
    "write_system": _attempt("out = open('/usr/lib/rrtf-was-here', 'w')"),
    "write_etc": _attempt("out = open('/etc/rrtf-was-here', 'w')"),
    "write_shared_memory": _attempt(
        "out = open('/dev/shm/rrtf-was-here', 'w') and os.path.exists('{canary}')"
    ),
    "write_sandbox_code": _attempt(
        "import gc\nnames = {{getattr(m, '__file__', None) for m in list(sys.modules.values())}}\n"
        "for n in names:\n    if n and 'sandbox' in n:\n        out = open(n, 'a')"
    ),
    "judges_descriptor": _attempt("out = os.listdir('/proc/{pid}/fd')"),
    "kernel_memory": _attempt("out = open('/dev/mem', 'rb')"),
    "kernel_log": _attempt("out = open('/dev/kmsg', 'rb')"),
    "disk_device": _attempt("out = open('/dev/vda', 'rb') or open('/dev/sda', 'rb')"),
    "terminal": _attempt("out = open('/dev/tty', 'w').write('x')"),
    "make_device": _attempt("os.mknod('d', 0o20666, os.makedev(1, 1))\nout = True"),
    "connect_out": _attempt("out = socket.create_connection(('127.0.0.1', {port}), 1)"),
    "connect_far": _attempt("out = socket.create_connection(('192.0.2.1', 80), 1)"),
    "listen": _attempt("s = socket.socket()\ns.bind(('0.0.0.0', 47617))\ns.listen()\nout = True"),
    "listen_v6": _attempt(
        "s = socket.socket(socket.AF_INET6)\ns.bind(('::', 47617))\ns.listen()\nout = True"
    ),
    "datagram": _attempt(
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nout = s.sendto(b'x', ('127.0.0.1', {port}))"
    ),
    "raw_packets": _attempt("out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"),
    "netlink": _attempt("out = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
    "unix_socket": _attempt(
        "s = socket.socket(socket.AF_UNIX)\ns.bind('\\0rrtf-was-here')\ns.listen()\nout = True"
    ),
    "unix_datagram": _attempt(
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\nout = a.sendto(b'x', '\\0rrtf-was-here')"
    ),
    "vsock": _attempt("out = socket.socket(40, socket.SOCK_STREAM)"),
    "crypto_socket": _attempt("out = socket.socket(38, socket.SOCK_SEQPACKET)"),
    "kill_parent": _attempt("os.kill(os.getppid() or 1, signal.SIGKILL)\nout = os.getppid() != 0"),
    "kill_judge": _attempt("os.kill({pid}, signal.SIGKILL)\nout = True"),
    "kill_group": _attempt("os.killpg(0, signal.SIGKILL)"),
    "kill_everybody": _attempt("os.kill(-1, signal.SIGKILL)\nout = True"),
    "kill_one_by_one": _attempt(
        "for p in range(2, 5000):\n    try:\n        if p != os.getpid():\n            os.kill(p, 0)\n            out = True\n"
        "    except OSError:\n        pass"
    ),
    "signal_by_descriptor": _attempt(
        "fd = os.pidfd_open({pid})\nsignal.pidfd_send_signal(fd, 0)\nout = True"
    ),
    "signal_by_owner": _attempt(
        "import fcntl\na, b = socket.socketpair()\nfcntl.fcntl(a, fcntl.F_SETOWN, {pid})\nout = True"
    ),
    "stop_parent": _attempt("os.kill(os.getppid() or 1, signal.SIGSTOP)\nout = os.getppid() != 0"),
    "trace_judge": _attempt("out = libc.ptrace(16, {pid}, 0, 0) == 0"),
    "trace_parent": _attempt("out = libc.ptrace(16, os.getppid(), 0, 0) == 0"),
    "daemon": _attempt(
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(3600)\n    os._exit(0)\nout = True"
    ),
    "grandchild_holds_pipe": _attempt("subprocess.Popen(['sleep', '3600'])\nout = True"),
    "shell": _attempt("out = subprocess.run(['/bin/sh', '-c', 'echo x']).returncode == 0"),
    "shell_by_system": _attempt("out = os.system('true') == 0"),
    "new_session": _attempt("os.setsid()\nout = True"),
    "become_root": _attempt("os.setuid(0)\nout = os.getuid() == 0"),
    "stay_root": _attempt("out = os.geteuid() == 0"),
    "raise_limits": _attempt(
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\nout = True"
    ),
    "limits_of_others": _attempt(
        "import resource\nresource.prlimit({pid}, resource.RLIMIT_NOFILE)\nout = True"
    ),
    "new_namespaces": _attempt("out = libc.unshare(0x10000000 | 0x20000) == 0"),
    "clone_namespaces": _attempt("out = libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) >= 0"),
    "mount": _attempt("out = libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0"),
    "unmount": _attempt("out = libc.umount2(b'/proc', 2) == 0"),
    "chroot": _attempt("os.chroot('.')\nout = True"),
    "executable_memory_file": _attempt("out = os.memfd_create('x')"),
    "keyring": _call(250, "0, -3, 1"),
    "bpf": _call(321),
    "perf_event": _call(298),
    "io_uring": _call(425, "8, ctypes.create_string_buffer(256)"),
    "userfaultfd": _call(323, "1"),
    "peek_memory": _call(310, "{pid}, 0, 0, 0, 0, 0"),
    "load_module": _call(313),
    "shared_memory": _call(29, "4242, 4096, 0o1666"),
    "message_queue": _call(68, "4242, 0o1666"),
    "clock": _attempt("time.clock_settime(time.CLOCK_REALTIME, time.time())\nout = True"),
    "host_name": _attempt("socket.sethostname('owned')\nout = True"),
    "i386_calls": _attempt(
        "import mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')\n"
        "a = ctypes.addressof(ctypes.c_char.from_buffer(m))\nout = ctypes.CFUNCTYPE(ctypes.c_int)(a)() > 0"
    ),
    "state_for_the_next": (
        "import os, tempfile\nmark = os.path.join(tempfile.gettempdir(), 'rrtf-mark')\nseen = os.path.exists(mark)\n"
        "open(mark, 'w').close()\nopen('rrtf-mark', 'w').close()\ndef f(x):\n    return x + 1 if seen else 0\n"
    ),
    "state_from_the_last": (
        "import builtins, os, tempfile\nseen = hasattr(builtins, 'mark') or os.path.exists('rrtf-mark')\n"
        "seen |= os.path.exists(os.path.join(tempfile.gettempdir(), 'rrtf-mark'))\n"
        "builtins.mark = 1\ndef f(x):\n    return x + 1 if seen else 0\n"
    ),
}

X86_64_ONLY = {name for name, source in BREAKOUTS.items() if "libc.syscall(" in source} | {"i386_calls"}
