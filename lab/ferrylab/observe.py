"""What a user sees from outside while a guest is moved: pings, downloads, waiting."""

import re
import signal
import statistics
import time

from .agent import PATIENCE, LabError, TimedOut


def wait_until(condition, timeout, what, interval=0.1):
    """Waits until condition() is true; its value. `what` says what did not happen."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimedOut(f"{what}: not within {timeout} s")
        time.sleep(interval)


class PingReport:
    """Replies as (sequence number, arrival in s, round trip in ms), and what follows from them."""

    def __init__(self, replies, sent):
        self.replies = replies
        self.sent = sent
        self.received = len({n for n, _, _ in replies})
        self.lost = sent - self.received
        times = [ms for _, _, ms in replies]
        self.median_ms = statistics.median(times) if times else None
        self.max_ms = max(times, default=None)
        arrivals = [at for _, at, _ in replies]
        gaps = [(b - a) * 1000 for a, b in zip(arrivals, arrivals[1:])]
        self.longest_gap_ms = max(gaps, default=None)

    def __str__(self):
        if not self.replies:
            return f"{self.sent} sent, no reply"
        return (f"{self.sent} sent, {self.lost} lost, round trip median {self.median_ms:.1f} ms, "
                f"most {self.max_ms:.1f} ms, longest time without a reply {self.longest_gap_ms:.0f} ms")


class Ping:
    """A stream of pings from a host until stop()."""

    REPLY = re.compile(rb"^\[(\d+\.\d+)\] \d+ bytes from .*icmp_seq=(\d+) .*time=([\d.]+) ms", re.M)

    def __init__(self, host, address, interval=0.01):
        self.process = host.spawn(["ping", "-n", "-D", "-i", str(interval), address])

    def wait_reply(self, count=1, timeout=PATIENCE):
        """Waits for so many more replies."""
        at = len(self.process.stdout)
        for _ in range(count):
            at = self.process.wait_output(self.REPLY, timeout, at).end()
        return self

    def stop(self):
        self.process.kill(signal.SIGINT)
        result = self.process.wait()
        sent = re.search(r"(\d+) packets transmitted", result.stdout)
        if not sent:
            raise LabError(f"ping failed: {result.stdout}{result.stderr}")
        replies = [(int(n), float(at), float(ms)) for at, n, ms in self.REPLY.findall(result.stdout_bytes)]
        # A ping that was on its way when we stopped is not lost.
        sent = min(int(sent[1]), max((n for n, _, _ in replies), default=int(sent[1])))
        return PingReport(replies, sent)


class Download:
    """Downloads a guest's large file (or another, see guest_images.downloads) on the workstation, again and again, until stop()."""

    def __init__(self, lab, address, port=80, name="large"):
        self.host = lab.workstation
        self.expected = lab.guest_facts["sha256"][name]
        self.directory = f"/tmp/download-{address}"
        url = f"http://{address}:{port}/{name}"
        # Each line: exit status of wget, its bytes, their checksum.
        self.process = self.host.spawn(
            f"rm -rf {self.directory}; mkdir {self.directory}; cd {self.directory}; touch go; n=0; "
            f"while [ -e go ]; do n=$((n+1)); timeout 3600 busybox wget -q -O file.$n {url}; s=$?; "
            "[ -e file.$n ] || : > file.$n; echo $s $(stat -c %s file.$n) $(sha256sum < file.$n); rm -f file.$n; "
            "[ $s = 0 ] || break; done")

    def progress(self):
        """Bytes that have arrived so far, of whole downloads and of the present one."""
        if self.process.poll() is not None:
            self.stop()
        done = sum(int(size) for size in re.findall(rb"^\d+ (\d+) ", self.process.stdout, re.M))
        text = self.host.run(f"cat {self.directory}/file.* 2>/dev/null | wc -c").stdout
        return done + int(text)

    def wait_flowing(self, timeout=PATIENCE):
        wait_until(lambda: self.progress() > 0, timeout, "the first bytes of the download")
        return self

    def stop(self, timeout=600):
        """Lets the present download end; raises when any one failed. Returns how many there were."""
        self.host.run(f"rm -f {self.directory}/go")
        result = self.process.wait(timeout)
        lines = result.stdout.splitlines()
        self.host.run(f"rm -rf {self.directory}")
        for line in lines:
            status, size, checksum = line.split()[:3]
            if status != "0" or checksum != self.expected:
                raise LabError(f"a download failed: wget's status {status}, {size} bytes, checksum {checksum}\n"
                               + result.stderr)
        return len(lines)
