"""System calls by name: what an honest programme of the standard library needs, and what it is refused.

Numbers: Linux arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (aarch64). A call
that is named nowhere here gets ENOSYS, as on a kernel that lacks it, so that C libraries fall back.
"""

from __future__ import annotations


def _names(text: str) -> list[str]:
    return text.split()


ALLOWED = _names("""
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 open openat close close_range
    stat fstat lstat newfstatat statx poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl
    epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 lseek mmap mprotect munmap mremap brk madvise msync
    mincore rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigpending rt_sigtimedwait sigaltstack
    access faccessat faccessat2 pipe pipe2 sched_yield sched_getaffinity sched_getparam sched_getscheduler
    sched_get_priority_max sched_get_priority_min dup dup2 dup3 nanosleep clock_nanosleep clock_gettime
    clock_getres gettimeofday time times getitimer setitimer alarm pause timerfd_create timerfd_settime
    timerfd_gettime getpid gettid getppid getuid geteuid getgid getegid getgroups getresuid getresgid
    getpgrp getpgid getsid recvmsg recvfrom shutdown getsockopt setsockopt getsockname getpeername wait4
    waitid exit exit_group uname flock fsync fdatasync truncate ftruncate getdents getdents64 getcwd chdir
    fchdir rename renameat renameat2 mkdir mkdirat rmdir creat link linkat unlink unlinkat symlink symlinkat
    readlink readlinkat chmod fchmod fchmodat fchmodat2 umask utime utimes utimensat futimesat fallocate
    fadvise64 statfs fstatfs copy_file_range sendfile getrlimit setrlimit getrusage sysinfo getpriority
    arch_prctl set_tid_address set_robust_list get_robust_list futex futex_waitv rseq membarrier getrandom
    getcpu capget restart_syscall
""")

# Change files by path, whoever is allowed to write them.
ATTRIBUTES = _names("chmod fchmod fchmodat fchmodat2 utime utimes utimensat futimesat truncate")

# EPERM instead of ENOSYS: says to people and programmes that it is refused, not missing.
REFUSED = _names("""
    ptrace mount umount2 move_mount fsopen open_tree pivot_root chroot unshare setns bpf perf_event_open
    keyctl add_key request_key io_uring_setup io_uring_enter io_uring_register kexec_load kexec_file_load
    userfaultfd process_vm_readv process_vm_writev init_module finit_module delete_module reboot swapon
    swapoff socket connect bind listen accept accept4 sendmsg sendmmsg recvmmsg setsid setpgid setuid setgid
    setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset chown fchown lchown fchownat
    mknod mknodat memfd_create memfd_secret shmget shmat shmctl semget semop msgget mq_open pidfd_open
    pidfd_getfd pidfd_send_signal rt_sigqueueinfo rt_tgsigqueueinfo open_by_handle_at name_to_handle_at
    personality quotactl acct syslog settimeofday clock_settime adjtimex clock_adjtime sethostname
    setdomainname process_madvise kcmp fanotify_init seccomp landlock_create_ruleset setpriority
    sched_setscheduler sched_setattr ioprio_set mbind migrate_pages move_pages vmsplice lookup_dcookie iopl
    ioperm modify_ldt
""")

# shutil.copy2 and copytree take this as "a file system without extended attributes".
NOT_SUPPORTED = _names("""
    listxattr llistxattr flistxattr getxattr lgetxattr fgetxattr setxattr lsetxattr fsetxattr removexattr
    lremovexattr fremovexattr
""")


def _numbers(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in (entry.split("=") for entry in text.split())}


X86_64 = _numbers("""
    accept=43 accept4=288 access=21 acct=163 add_key=248 adjtimex=159 alarm=37 arch_prctl=158 bind=49
    bpf=321 brk=12 capget=125 capset=126 chdir=80 chmod=90 chown=92 chroot=161 clock_adjtime=305
    clock_getres=229 clock_gettime=228 clock_nanosleep=230 clock_settime=227 clone=56 clone3=435 close=3
    close_range=436 connect=42 copy_file_range=326 creat=85 delete_module=176 dup=32 dup2=33 dup3=292
    epoll_create=213 epoll_create1=291 epoll_ctl=233 epoll_pwait=281 epoll_pwait2=441 epoll_wait=232
    eventfd=284 eventfd2=290 execve=59 execveat=322 exit=60 exit_group=231 faccessat=269 faccessat2=439
    fadvise64=221 fallocate=285 fanotify_init=300 fchdir=81 fchmod=91 fchmodat=268 fchmodat2=452 fchown=93
    fchownat=260 fcntl=72 fdatasync=75 fgetxattr=193 finit_module=313 flistxattr=196 flock=73 fork=57
    fremovexattr=199 fsetxattr=190 fsopen=430 fstat=5 fstatfs=138 fsync=74 ftruncate=77 futex=202
    futex_waitv=449 futimesat=261 get_robust_list=274 getcpu=309 getcwd=79 getdents=78 getdents64=217
    getegid=108 geteuid=107 getgid=104 getgroups=115 getitimer=36 getpeername=52 getpgid=121 getpgrp=111
    getpid=39 getppid=110 getpriority=140 getrandom=318 getresgid=120 getresuid=118 getrlimit=97
    getrusage=98 getsid=124 getsockname=51 getsockopt=55 gettid=186 gettimeofday=96 getuid=102
    getxattr=191 init_module=175 io_uring_enter=426 io_uring_register=427 io_uring_setup=425 ioctl=16
    ioperm=173 iopl=172 ioprio_set=251 kcmp=312 kexec_file_load=320 kexec_load=246 keyctl=250 kill=62
    landlock_create_ruleset=444 lchown=94 lgetxattr=192 link=86 linkat=265 listen=50 listxattr=194
    llistxattr=195 lookup_dcookie=212 lremovexattr=198 lseek=8 lsetxattr=189 lstat=6 madvise=28 mbind=237
    membarrier=324 memfd_create=319 memfd_secret=447 migrate_pages=256 mincore=27 mkdir=83 mkdirat=258
    mknod=133 mknodat=259 mmap=9 modify_ldt=154 mount=165 move_mount=429 move_pages=279 mprotect=10
    mq_open=240 mremap=25 msgget=68 msync=26 munmap=11 name_to_handle_at=303 nanosleep=35 newfstatat=262
    open=2 open_by_handle_at=304 open_tree=428 openat=257 pause=34 perf_event_open=298 personality=135
    pidfd_getfd=438 pidfd_open=434 pidfd_send_signal=424 pipe=22 pipe2=293 pivot_root=155 poll=7 ppoll=271
    prctl=157 pread64=17 preadv=295 preadv2=327 prlimit64=302 process_madvise=440 process_vm_readv=310
    process_vm_writev=311 pselect6=270 ptrace=101 pwrite64=18 pwritev=296 pwritev2=328 quotactl=179 read=0
    readlink=89 readlinkat=267 readv=19 reboot=169 recvfrom=45 recvmmsg=299 recvmsg=47 removexattr=197
    rename=82 renameat=264 renameat2=316 request_key=249 restart_syscall=219 rmdir=84 rseq=334
    rt_sigaction=13 rt_sigpending=127 rt_sigprocmask=14 rt_sigqueueinfo=129 rt_sigreturn=15
    rt_sigsuspend=130 rt_sigtimedwait=128 rt_tgsigqueueinfo=297 sched_get_priority_max=146
    sched_get_priority_min=147 sched_getaffinity=204 sched_getparam=143 sched_getscheduler=145
    sched_setattr=314 sched_setscheduler=144 sched_yield=24 seccomp=317 select=23 semget=64 semop=65
    sendfile=40 sendmmsg=307 sendmsg=46 sendto=44 set_robust_list=273 set_tid_address=218
    setdomainname=171 setfsgid=123 setfsuid=122 setgid=106 setgroups=116 sethostname=170 setitimer=38
    setns=308 setpgid=109 setpriority=141 setregid=114 setresgid=119 setresuid=117 setreuid=113
    setrlimit=160 setsid=112 setsockopt=54 settimeofday=164 setuid=105 setxattr=188 shmat=30 shmctl=31
    shmget=29 shutdown=48 sigaltstack=131 socket=41 socketpair=53 stat=4 statfs=137 statx=332 swapoff=168
    swapon=167 symlink=88 symlinkat=266 sysinfo=99 syslog=103 tgkill=234 time=201 timerfd_create=283
    timerfd_gettime=287 timerfd_settime=286 times=100 tkill=200 truncate=76 umask=95 umount2=166 uname=63
    unlink=87 unlinkat=263 unshare=272 userfaultfd=323 utime=132 utimensat=280 utimes=235 vfork=58
    vmsplice=278 wait4=61 waitid=247 write=1 writev=20
""")

AARCH64 = _numbers("""
    accept=202 accept4=242 acct=89 add_key=217 adjtimex=171 bind=200 bpf=280 brk=214 capget=90 capset=91
    chdir=49 chroot=51 clock_adjtime=266 clock_getres=114 clock_gettime=113 clock_nanosleep=115
    clock_settime=112 clone=220 clone3=435 close=57 close_range=436 connect=203 copy_file_range=285
    delete_module=106 dup=23 dup3=24 epoll_create1=20 epoll_ctl=21 epoll_pwait=22 epoll_pwait2=441
    eventfd2=19 execve=221 execveat=281 exit=93 exit_group=94 faccessat=48 faccessat2=439 fadvise64=223
    fallocate=47 fanotify_init=262 fchdir=50 fchmod=52 fchmodat=53 fchmodat2=452 fchown=55 fchownat=54
    fcntl=25 fdatasync=83 fgetxattr=10 finit_module=273 flistxattr=13 flock=32 fremovexattr=16 fsetxattr=7
    fsopen=430 fstat=80 fstatfs=44 fsync=82 ftruncate=46 futex=98 futex_waitv=449 get_robust_list=100
    getcpu=168 getcwd=17 getdents64=61 getegid=177 geteuid=175 getgid=176 getgroups=158 getitimer=102
    getpeername=205 getpgid=155 getpid=172 getppid=173 getpriority=141 getrandom=278 getresgid=150
    getresuid=148 getrlimit=163 getrusage=165 getsid=156 getsockname=204 getsockopt=209 gettid=178
    gettimeofday=169 getuid=174 getxattr=8 init_module=105 io_uring_enter=426 io_uring_register=427
    io_uring_setup=425 ioctl=29 ioprio_set=30 kcmp=272 kexec_file_load=294 kexec_load=104 keyctl=219
    kill=129 landlock_create_ruleset=444 lgetxattr=9 linkat=37 listen=201 listxattr=11 llistxattr=12
    lookup_dcookie=18 lremovexattr=15 lseek=62 lsetxattr=6 madvise=233 mbind=235 membarrier=283
    memfd_create=279 memfd_secret=447 migrate_pages=238 mincore=232 mkdirat=34 mknodat=33 mmap=222
    mount=40 move_mount=429 move_pages=239 mprotect=226 mq_open=180 mremap=216 msgget=186 msync=227
    newfstatat=79 munmap=215 name_to_handle_at=264 nanosleep=101 open_by_handle_at=265 open_tree=428 openat=56
    perf_event_open=241 personality=92 pidfd_getfd=438 pidfd_open=434 pidfd_send_signal=424 pipe2=59
    pivot_root=41 ppoll=73 prctl=167 pread64=67 preadv=69 preadv2=286 prlimit64=261 process_madvise=440
    process_vm_readv=270 process_vm_writev=271 pselect6=72 ptrace=117 pwrite64=68 pwritev=70 pwritev2=287
    quotactl=60 read=63 readlinkat=78 readv=65 reboot=142 recvfrom=207 recvmmsg=243 recvmsg=212
    removexattr=14 renameat=38 renameat2=276 request_key=218 restart_syscall=128 rseq=293 rt_sigaction=134
    rt_sigpending=136 rt_sigprocmask=135 rt_sigqueueinfo=138 rt_sigreturn=139 rt_sigsuspend=133
    rt_sigtimedwait=137 rt_tgsigqueueinfo=240 sched_get_priority_max=125 sched_get_priority_min=126
    sched_getaffinity=123 sched_getparam=121 sched_getscheduler=120 sched_setattr=274
    sched_setscheduler=119 sched_yield=124 seccomp=277 semget=190 semop=193 sendfile=71 sendmmsg=269
    sendmsg=211 sendto=206 set_robust_list=99 set_tid_address=96 setdomainname=162 setfsgid=152
    setfsuid=151 setgid=144 setgroups=159 sethostname=161 setitimer=103 setns=268 setpgid=154
    setpriority=140 setregid=143 setresgid=149 setresuid=147 setreuid=145 setrlimit=164 setsid=157
    setsockopt=208 settimeofday=170 setuid=146 setxattr=5 shmat=196 shmctl=195 shmget=194 shutdown=210
    sigaltstack=132 socket=198 socketpair=199 statfs=43 statx=291 swapoff=225 swapon=224 symlinkat=36
    sysinfo=179 syslog=116 tgkill=131 timerfd_create=85 timerfd_gettime=87 timerfd_settime=86 times=153
    tkill=130 truncate=45 umask=166 umount2=39 uname=160 unlinkat=35 unshare=97 userfaultfd=282
    utimensat=88 vmsplice=75 wait4=260 waitid=95 write=64 writev=66
""")
