"""kill -9 at an enumerated system call: strace first writes down which calls there are, then kills.

The thread that first enters the N-th call of some name takes its process with it.
"""

import collections
import os
import re
import signal
import subprocess
import time

from conftest import BUILD
from enumeration import EXHAUSTIVE

# What a thread does while nothing changes for anybody else; how often it comes differs from run to run.
WAITING = "futex,epoll_wait,epoll_ctl,poll,clock_nanosleep,madvise,munmap,mprotect,brk,rt_sigprocmask,rt_sigaction"
XEND_CALLS = f"!{WAITING}"
GUEST_CALLS = "!ioctl,write,futex,epoll_wait"
# What a carrier's first thread does for each MiB or two that it writes, compressed or not, or reads: midway in 96 MiB.
WRITING, READING = ("madvise", 50), ("io_uring_enter", 20)
NEW_GUEST_CALLS = "!write,futex,epoll_wait"  # until it runs, and its processors' threads ask for more


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def wait_for(condition, what, timeout=120, log=""):
    """True once it holds; where there is something to say about it (`what`), it must in time."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            if what:
                raise AssertionError(f"{what} is still awaited; {read(log)[-3000:]}")
            return False
        time.sleep(0.01)
    return True


def ended_soon(process, seconds=0.1):
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        return False


def lives(host, process):
    """Whether this xend answers, and will: of one whom nobody kills any more, or else its end has been awaited."""
    if process.poll() is None and host.start_xm("list").process.wait() == 0:
        return True
    process.wait(120)
    return False


def processes(host, name):
    """Those of this host: their standard error goes where its xend's goes."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            said_to = os.readlink(f"/proc/{pid}/fd/2")
            if os.path.basename(os.readlink(f"/proc/{pid}/exe")) == name and said_to.startswith(f"{host.root}/"):
                found.append(int(pid))
        except OSError:
            continue
    return found


def orders(calls, point, sent="KILL"):
    """strace's: look at these calls, and kill at a point (name, number) unless it is None."""
    return ["-e", f"trace={calls}", *(["-e", f"inject={point[0]}:signal={sent}:when={point[1]}"] if point else [])]


class Wrapped:
    """A program that a host's xend starts: where there is an order, the next process of it is killed."""

    def __init__(self, host, name, trace=None):
        self.link = f"{host.root}/libexec/{name}"
        self.trace = trace or f"{self.link}.trace"
        program = f"{BUILD}/src/{'vmm' if name == 'ferry-guest' else 'carry'}/{name}"
        with open(f"{self.link}.new", "w", encoding="ascii") as script:
            script.write(f'#!/bin/sh\nif mv {self.link}.order {self.link}.given 2>/dev/null; then\n'
                         f'  read -r how <{self.link}.given\n'
                         f'  exec strace -D -I 2 -f -q -o {self.trace} $how {program} "$@"\nfi\nexec {program} "$@"\n')
        os.chmod(f"{self.link}.new", 0o755)
        os.rename(f"{self.link}.new", self.link)

    def order(self, calls, point, sent="KILL"):
        self.trace_with(orders(calls, point, sent))

    def trace_with(self, options):
        """What strace is to do with it."""
        if os.path.exists(self.trace):
            os.unlink(self.trace)
        with open(f"{self.link}.new-order", "w", encoding="ascii") as order:
            order.write(" ".join(options) + "\n")
        os.rename(f"{self.link}.new-order", f"{self.link}.order")

    def withdraw(self):
        """Whether the kill that was ordered came to pass."""
        try:
            os.unlink(f"{self.link}.order")
            return False
        except FileNotFoundError:
            wait_for(lambda: "+++" in read(self.trace), None, 2)
            return "killed by SIGKILL" in read(self.trace)

    def stopped(self):
        """The process that was ordered to stop, once it has; None until then."""
        found = re.search(r"^(\d+) +--- stopped by SIGSTOP", read(self.trace), re.M)
        status = found and re.search(r"Tgid:\s+(\d+)", read(f"/proc/{found.group(1)}/status"))
        return int(status.group(1)) if status else None


class Attached:
    """The same for a process that runs already, from now on."""

    def __init__(self, pid, trace, calls, point):
        self.trace = subprocess.Popen(
            ["strace", "-f", "-b", "execve", "-p", str(pid), "-o", trace, *orders(calls, point)],
            stderr=subprocess.PIPE, text=True)
        assert "attached" in self.trace.stderr.readline()

    def detach(self):
        if self.trace.poll() is None:
            self.trace.send_signal(signal.SIGINT)
        try:
            self.trace.communicate(timeout=60)
        except subprocess.TimeoutExpired:  # the kernel lets what it traced go on (ptrace(2), PTRACE_SEIZE)
            self.trace.kill()
            self.trace.communicate()


def points_in(trace):
    """Each (name, number) in the order in which they came: strace counts each name for each thread. How often a running
    guest comes out of KVM differs from run to run; its processors' threads ask KVM for nothing else."""
    seen, points = collections.Counter(), {}
    for thread, name in re.findall(r"^(\d+) +(\w+)\((?!\d+, KVM_RUN)", read(trace), re.M):
        seen[thread, name] += 1
        points[name, seen[thread, name]] = True
    return list(points)


def some(points, most):
    """How often memory is read or written in pieces differs from run to run: the last of many calls may not come."""
    last = collections.Counter()
    for name, number in points:
        last[name] = max(last[name], number)
    certain = [(name, number) for name, number in points if last[name] < 50 or number < last[name] // 2]
    return certain[::max(1, len(certain) // most)]


def enumerate_kills(attempt, trace, most):
    """attempt(point) kills there and says whether it came to that; attempt(None) leaves `trace` with all the points.
    Of them `most` are taken, or all."""
    attempt(None)
    points = points_in(trace)
    chosen = points if EXHAUSTIVE else some(points, most)
    killed = 0
    for point in chosen:
        call, number = point
        try:
            # How often some are made depends on how busy the machine is: then an earlier one of them.
            killed += bool(attempt(point) or (number > 1 and not EXHAUSTIVE and attempt((call, number // 2))))
        except Exception as failure:
            raise AssertionError(f"killed at call {point}: {failure!r}") from failure
    print(f"{killed} kills at {len(chosen)} of {len(points)} calls")
    assert killed > len(chosen) // 3 and len(points) > 10


def next_carrier_stops(host, doing):
    """The next carrier of this host stops itself midway (WRITING or READING), with some of the memory in or from its file,
    most still to come. Gives what waits until it has, and tells its process."""
    carrier = Wrapped(host, "ferry-carrier")
    carrier.order("all", doing, "STOP")

    def held():
        wait_for(carrier.stopped, "a carrier that is midway", log=f"{host.root}/xend.log")
        return carrier.stopped()

    return held
