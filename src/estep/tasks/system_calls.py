"""A filter of system calls that the kernel of Linux applies (seccomp): no new process, no file written, no network.

It lists what is refused, by number for each machine, and is left out on any other. See `confinement`.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import NamedTuple


class _Machine(NamedTuple):
    """A kind of processor, as seccomp sees it."""

    architecture: int
    """`AUDIT_ARCH_...` of linux/audit.h."""
    seccomp: int
    """The number of the call that installs a filter."""
    clone: int
    open: int | None
    openat: int
    refused: tuple[int, ...]
    """Calls that are never allowed."""


_ON_ALL = (
    *(425, 426, 427),  # io_uring_*: they would do what is refused below
    *(424, 434, 438),  # pidfd_send_signal, pidfd_open, pidfd_getfd
    *(428, 429, 430, 432),  # open_tree, move_mount, fsopen, fsmount
)
_MACHINES = {
    "x86_64": _Machine(
        architecture=0xC000003E,
        seccomp=317,
        clone=56,
        open=2,
        openat=257,
        refused=(
            *_ON_ALL,
            *(57, 58, 59, 322),  # fork, vfork, execve, execveat
            *(41, 42, 43, 44, 46, 49, 50, 53, 288, 307),  # socket, connect, accept, sendto, sendmsg, bind, ...
            *(62, 200, 234, 129, 297),  # kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo
            *(101, 310, 311),  # ptrace, process_vm_readv, process_vm_writev
            *(85, 76, 77, 133, 259),  # creat, truncate, ftruncate, mknod, mknodat
            *(82, 264, 316, 86, 265, 88, 266, 87, 263),  # rename*, link*, symlink*, unlink*
            *(83, 258, 84),  # mkdir, mkdirat, rmdir
            *(90, 91, 268, 452, 92, 93, 94, 260),  # chmod*, chown*
            *(132, 235, 280, 261, 188, 189, 190, 197, 198, 199),  # utime*, setxattr*, removexattr*
            *(
                165,
                166,
                155,
                161,
                272,
                308,
                304,
            ),  # mount, umount2, pivot_root, chroot, unshare, setns, open_by_handle_at
            *(321, 298, 323, 248, 249, 250),  # bpf, perf_event_open, userfaultfd, add_key, request_key, keyctl
        ),
    ),
    "aarch64": _Machine(
        architecture=0xC00000B7,
        seccomp=277,
        clone=220,
        open=None,
        openat=56,
        refused=(
            *_ON_ALL,
            *(221, 281),  # execve, execveat
            *(198, 199, 200, 201, 202, 203, 206, 211, 242, 269),  # socket, socketpair, bind, ..., accept4, sendmmsg
            *(129, 130, 131, 138, 240),  # kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo
            *(117, 270, 271),  # ptrace, process_vm_readv, process_vm_writev
            *(45, 46, 33),  # truncate, ftruncate, mknodat
            *(38, 276, 37, 36, 35, 34),  # renameat, renameat2, linkat, symlinkat, unlinkat, mkdirat
            *(52, 53, 452, 54, 55),  # fchmod, fchmodat, fchmodat2, fchownat, fchown
            *(88, 5, 6, 7, 14, 15, 16),  # utimensat, setxattr*, removexattr*
            *(40, 39, 41, 51, 97, 268, 265),  # mount, umount2, pivot_root, chroot, unshare, setns, open_by_handle_at
            *(280, 241, 282, 217, 218, 219),  # bpf, perf_event_open, userfaultfd, add_key, request_key, keyctl
        ),
    ),
}

# Not there, for the caller: the C library then takes the older calls, whose flags can be looked at.
_MISSING = (435, 437)  # clone3, openat2
_THREAD = 0x10000  # CLONE_THREAD
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# linux/bpf_common.h and linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the arguments are 8 bytes each
_NO_NEW_PRIVILEGES, _SET_FILTER, _ALL_THREADS = 38, 1, 1


def filtered() -> bool:
    """Have the kernel refuse this process what the module says, for good.

    Returns:
        Whether it does: only Linux can, on x86_64 and aarch64, where nothing forbids it.
    """
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or sys.byteorder != "little" or sys.maxsize < 2**32 or machine is None:
        return False
    program = _program(machine)
    instructions = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    given = Program(len(program) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    # Threads that a library has started before are held to it as well.
    installed: int = libc.syscall(ctypes.c_long(machine.seccomp), _SET_FILTER, _ALL_THREADS, ctypes.byref(given))
    return installed == 0


def _program(machine: _Machine) -> bytes:
    """The filter, in the kernel's own language (classic BPF): a comparison says how many steps to skip."""
    fail = _FAIL | errno.EPERM
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, machine.architecture, 1, 0),
        _step(_RETURN, _KILL),  # calls of another architecture have other numbers
        _step(_LOAD, _NUMBER),
        *(_step(_AT_LEAST, 0x40000000, 0, 1), _step(_RETURN, fail)),  # x32's calls
    ]
    for number in machine.refused:
        code += [_step(_EQUAL, number, 0, 1), _step(_RETURN, fail)]
    for number in _MISSING:
        code += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _FAIL | errno.ENOSYS)]
    # A thread is no process.
    code += [
        _step(_EQUAL, machine.clone, 0, 4),
        _step(_LOAD, _ARGUMENT),
        _step(_ANY_BIT, _THREAD, 0, 1),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, fail),
    ]
    for opening, argument in ((machine.open, 1), (machine.openat, 2)):
        if opening is not None:
            code += [
                _step(_EQUAL, opening, 0, 4),
                _step(_LOAD, _ARGUMENT + 8 * argument),
                _step(_ANY_BIT, _WRITING, 0, 1),
                _step(_RETURN, fail),
                _step(_RETURN, _ALLOW),
            ]
    return b"".join([*code, _step(_RETURN, _ALLOW)])


def _step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", operation, if_true, if_false, value)
