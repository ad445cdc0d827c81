"""What a process has used, from /proc."""

import os


def comm(directory):
    try:
        with open(f"{directory}/comm", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def process_seconds(pid, ended_children=False):
    """CPU time of all its threads, also those that have ended; 0 where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11 : 15 if ended_children else 13]) / os.sysconf("SC_CLK_TCK")


def threads_seconds(pid, name, waiting=False):
    """CPU time of those threads whose name begins with `name`, or, with `waiting`, what they had and what they waited for."""
    total = 0
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            if comm(f"/proc/{pid}/task/{task}").startswith(name):
                with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as schedstat:
                    total += sum(map(int, schedstat.read().split()[: 2 if waiting else 1]))
    except OSError:
        pass
    return total / 1e9


def own_memory_mib(pid):
    """Resident memory that is not shared memory: the process's own and its program's."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        values = {key: value.split() for key, value in (line.split(":", 1) for line in status)}
    return (int(values["RssAnon"][0]) + int(values["RssFile"][0])) / 1024
