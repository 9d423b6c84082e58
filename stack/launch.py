"""Become another program, one that ends with the process that launched it.

    python -I -S launch.py --parent PID --signal N [--user UID:GID] [--capability NAME] -- PROGRAM [ARG ...]

A program of its own rather than a `preexec_fn`: between fork and exec of a process with threads
(asyncio waits for its children in threads) no Python code is safe to run. It uses only the standard
library, without `site`, and costs about 20 ms.

Linux: elsewhere the program is started all the same, and what a killed supervisor leaves behind
is ended by the next `mesh up` (see `stack.state`).
"""

import ctypes
import os
import sys

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2

# <linux/securebits.h>
SECBIT_NO_SETUID_FIXUP = 1 << 2

# <linux/capability.h>
CAPABILITY_VERSION_3 = 0x20080522
CAPABILITIES = {"CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2}


class CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class CapabilitySets(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def become_user(uid: int, gid: int, capability: str | None) -> None:
    """Give up root for good, but for one capability if it is named."""
    libc = ctypes.CDLL(None, use_errno=True)
    if capability is not None:
        # Keeps all capabilities over the change of user; those not named are dropped below. It also makes access(2)
        # respect the one that stays, which it ignores by default: initdb looks for its programs with access(2).
        checked(libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
        # The bit is inherited, and would let a setuid program keep what it wants to give up: none can be run.
        checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if capability is not None:
        number = CAPABILITIES[capability]
        header = CapabilityHeader(CAPABILITY_VERSION_3, 0)
        sets = (CapabilitySets * 2)(CapabilitySets(*[1 << number] * 3), CapabilitySets(0, 0, 0))
        checked(libc.capset(ctypes.byref(header), ctypes.byref(sets)))
        # An ambient capability is the only kind that a program without file capabilities inherits.
        checked(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0))


def end_with(parent: int, signal: int) -> None:
    """Ask the kernel for `signal` when the thread that started this process ends."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    checked(libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0))
    if os.getppid() != parent:  # it ended before the kernel was asked
        sys.exit(1)


def main(arguments: list[str]) -> None:
    end = arguments.index("--")
    options = dict(zip(arguments[0:end:2], arguments[1:end:2], strict=True))
    command = arguments[end + 1 :]
    if "--user" in options:
        uid, gid = options["--user"].split(":")
        become_user(int(uid), int(gid), options.get("--capability"))
    # After the change of user: that clears the request.
    end_with(int(options["--parent"]), int(options["--signal"]))
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
